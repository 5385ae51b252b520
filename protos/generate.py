"""Write the Python of the services from their .proto files: python protos/generate.py [FOLDER]

Without a folder the code lands beside the .proto files, where it is committed.
"""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

_ROOT = Path(__file__).parent


def main(folder: Path) -> int:
    """Return protoc's exit status."""
    sources = sorted(str(path.relative_to(_ROOT)) for path in _ROOT.glob("fedlora/v1/*.proto"))
    well_known = str(files("grpc_tools") / "_proto")
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    status: int = protoc.main(["protoc", f"-I{_ROOT}", f"-I{well_known}", *outputs, *sources])
    # No service in it, and so nothing in what was generated for one.
    (folder / "fedlora/v1/messages_pb2_grpc.py").unlink(missing_ok=True)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else _ROOT))
