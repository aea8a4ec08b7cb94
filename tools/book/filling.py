"""Pages of site/ with comments `<!-- name -->` in whose place something generated comes."""

import re

from tools import Refusal

_PLACE = re.compile(r"<!-- (\w+) -->")


def fill(template: str, content: dict[str, str], file: str) -> str:
    """Put what is generated in the place of comments.

    Args:
        template: MyST Markdown with comments `<!-- name -->`.
        content: Markdown by name.
        file: of the template, for the message.

    Returns:
        MyST Markdown.

    Raises:
        Refusal: the template asks for something unknown.
    """

    def replace(match: re.Match[str]) -> str:
        if match[1] not in content:
            raise Refusal(f"{file}: {match[0]}: known are {', '.join(content)}")
        return content[match[1]]

    return _PLACE.sub(replace, template)
