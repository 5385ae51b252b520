"""The ClientApp of the yardstick, as a SuperNode starts it: answers at once; see `idle_app`.

What is no message of fedlora's, such as bare arrays, goes back as it came. The node config holds `name` and `adapter`.
"""

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from idle_app import answered

from fedlora.common.records import kind_of

app = ClientApp()  # Flower looks for this very assignment in the source.


@app.query("describe")
@app.query("initialise")
@app.train()
@app.evaluate()
def answer(message: Message, context: Context) -> Message:
    """Return the answer that costs nothing."""
    if not kind_of(message.content):
        return Message(message.content, reply_to=message)
    name, adapter = str(context.node_config["name"]), Path(str(context.node_config["adapter"]))
    return answered(message, name=name, adapter=adapter, num_held_out=0)
