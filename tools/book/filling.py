"""Pages of site/ with comments `<!-- name -->` in whose place something generated comes."""

import re

from tools import Refusal

_PLACE = re.compile(r"<!-- (\w+) -->")


def fill(template: str, content: dict[str, str], file: str) -> str:
    """Put content in the place of the comments that name it; an unknown name is refused."""

    def replace(match: re.Match[str]) -> str:
        if match[1] not in content:
            raise Refusal(f"{file}: {match[0]}: known are {', '.join(content)}")
        return content[match[1]]

    return _PLACE.sub(replace, template)
