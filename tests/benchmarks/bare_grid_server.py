"""The Grid without a strategy: python bare_grid_server.py RUN.toml FOLDER EVENTS ADAPTER NUM_ROUNDS

Port, mTLS, sessions, exchange and GrpcGrid as `serve` puts them together. Once all sites are ready it asks them to
evaluate, and then to train, NUM_ROUNDS times each, and takes the answers: from a request's making to the last site's
answer, without admission, aggregation and journal. EVENTS gets the seconds of each.
"""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio
from event_log import EventLog
from flwr.app import Message, MessageType
from idle_app import changed

from fedlora.common.messages import EvaluateReceipt, EvaluateRequest, TrainReceipt, TrainRequest
from fedlora.common.records import from_record, to_record
from fedlora.common.run_file import load_run
from fedlora.common.run_folder import IDENTITY_FOLDER
from fedlora.server.disk.exchange import ExchangeStore
from fedlora.server.identity.authority import Authority
from fedlora.server.identity.tickets import TicketOffice
from fedlora.server.sites.grpc.enrolment import EnrolmentService
from fedlora.server.sites.grpc.gate import Gate
from fedlora.server.sites.grpc.grid import GrpcGrid
from fedlora.server.sites.grpc.port import Port, ServerCertificates
from fedlora.server.sites.grpc.session import SessionService
from fedlora.server.sites.grpc.transfer import TransferService
from fedlora.v1.enrolment_pb2_grpc import add_EnrolmentServiceServicer_to_server
from fedlora.v1.exchange_pb2_grpc import add_AdapterExchangeServiceServicer_to_server
from fedlora.v1.session_pb2_grpc import add_SessionServiceServicer_to_server

_NUM_WARM_UP = 5


def main(run: Path, folder: Path, log: EventLog, adapter: bytes, num_rounds: int) -> None:
    """Write the seconds of each round trip."""
    config = load_run(run)
    exchange = ExchangeStore(folder / "exchange", precision=config.exchange.precision)
    tickets = TicketOffice(exchange.ticket_key_file)
    grid = GrpcGrid(exchange, tickets, max_start_bytes=10**9)
    authority = Authority.open(folder / IDENTITY_FOLDER, datetime.now(UTC))
    gate = Gate(authority, run=config.run.name)

    def add_services(server: grpc.aio.Server) -> None:
        add_SessionServiceServicer_to_server(SessionService(grid, exchange, gate, config), server)
        add_AdapterExchangeServiceServicer_to_server(TransferService(exchange, tickets, grid, gate), server)
        add_EnrolmentServiceServicer_to_server(EnrolmentService(gate), server)

    with Port("127.0.0.1:0", ServerCertificates(authority, None).credentials(), add_services) as port:
        log.say("opened", port=port.number)
        while len(nodes := list(grid.get_node_ids())) < config.federation.sites:
            time.sleep(0.02)
        first = EvaluateRequest("bare", 0, 1, 0, 1, False, adapter)
        for number in range(num_rounds + _NUM_WARM_UP):
            # Each of another round: what a site has evaluated once it does not evaluate again.
            request = EvaluateRequest("bare", number, 1, 0, 1, False, first.adapter)
            seconds = _round_trip(grid, nodes, request, MessageType.EVALUATE, EvaluateReceipt)
            if number >= _NUM_WARM_UP:
                log.say("evaluated", seconds=seconds)
        for number in range(1, num_rounds + _NUM_WARM_UP + 1):
            training = TrainRequest("bare", number, 0, 0, num_rounds, 0, changed(adapter, number))
            seconds = _round_trip(grid, nodes, training, MessageType.TRAIN, TrainReceipt)
            if number > _NUM_WARM_UP:
                log.say("trained", seconds=seconds)
        grid.stop(is_finished=True)


def _round_trip(grid: GrpcGrid, nodes: list[int], request: object, message_type: str, expected: type) -> float:
    """Return the seconds from making the messages until all answers are here."""
    began = time.perf_counter()
    pending = set(grid.push_messages([Message(to_record(request), node, message_type) for node in nodes]))
    while pending:
        for reply in grid.pull_messages(list(pending)):
            from_record(reply.content, expected, with_files=True)
            message_id = reply.metadata.reply_to_message_id
            grid.acknowledge(message_id, "")
            pending.remove(message_id)
    return time.perf_counter() - began


if __name__ == "__main__":
    main(
        Path(sys.argv[1]), Path(sys.argv[2]), EventLog(Path(sys.argv[3])), Path(sys.argv[4]).read_bytes(),
        int(sys.argv[5]),
    )  # fmt: skip
