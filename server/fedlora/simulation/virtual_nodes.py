"""What Flower's apps are told of themselves where there is no SuperLink."""

from flwr.app import Context, RecordDict

_RUN = 1


def server_context() -> Context:
    """Return what a ServerApp is given."""
    return Context(_RUN, 0, {}, RecordDict(), {})


def node_contexts(num_nodes: int) -> dict[int, Context]:
    """Return by node's number, from 1, what its ClientApp is given: node n has the `partition-id` n - 1."""
    return {
        node: Context(_RUN, node, {"partition-id": node - 1, "num-partitions": num_nodes}, RecordDict(), {})
        for node in range(1, num_nodes + 1)
    }
