"""A site file with every key, its default and what it is for, to be filled in by who holds the data."""

from fedlora.client.site.site_file import SiteConfig, SiteDataSection, SiteSection
from fedlora.common.run_file import toml_entry
from fedlora.common.section import Section

_HEAD = (
    "# A site's own decisions; nothing of this file is sent. [site] name and [data] path are needed, all else has",
    "# the default that stands here. A run that asks for more than [limits] allow is refused in one line.",
)


def commented_site() -> str:
    """Return a site file as TOML, each key with its description; a key without value is commented out."""
    example = SiteConfig(site=SiteSection(name="my-site"), data=SiteDataSection(path="pictures"))
    lines = [*_HEAD]
    for name in SiteConfig.model_fields:
        section: Section = getattr(example, name)
        lines += ["", f"[{name}]"]
        lines += [f"{toml_entry(key, value):<34} # {description}" for key, value, description in section.entries()]
    return "\n".join(lines) + "\n"
