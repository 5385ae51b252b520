"""What an error of somebody else's code becomes in logs and reports."""

from fedlora.common.errors import one_line


def test_names_and_passwords_in_addresses_are_left_out() -> None:
    said = one_line(OSError("request to http://bob:s3cret@mlflow.example.org:5000/api failed;\n see //bob@host/x"))
    assert said == "request to http://…@mlflow.example.org:5000/api failed; see //…@host/x"


def test_other_addresses_stay() -> None:
    said = "https://example.org/a@b and someone@example.org"
    assert one_line(said) == said
