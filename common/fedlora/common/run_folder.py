"""The names in a run folder that more than one room knows: the server writes them, a trained model is read by them."""

RUN_FILE = "run.toml"
MANIFEST_FILE = "manifest.json"
ADAPTER_FOLDER = "adapter"
IDENTITY_FOLDER = "identity"
PUBLISHED_FOLDER = "published"
STATUS_FILE = "status.json"
LOCK_FILE = ".lock"
