"""[privacy]: what a server learns of a client, and how much all that is made known can tell."""

from pydantic import Field

from fedlora.common.section import Section


class PrivacySection(Section):
    secure_sums: bool = Field(
        False, description="the server learns sums over the clients alone, and no single client's update"
    )
