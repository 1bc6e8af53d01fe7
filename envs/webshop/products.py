"""Products as the shop shows, searches and judges them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from envs.webshop.files import Files, RawProduct, parse_prices

NO_ATTRIBUTES = ("DUMMY_ATTR",)
"""The attributes that WebShop gives a product of which none are known."""


@dataclass(frozen=True, slots=True)
class Product:
    """A product.

    `options`: name -> values, in the shop's order. `price` decides in the reward, `price_text` is
    shown.
    """

    asin: str
    title: str
    category: str
    query: str
    path: tuple[str, ...]
    """Parts of the category path, from general to special."""
    description: str
    bullets: tuple[str, ...]
    price: float
    price_text: str
    options: dict[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    nouns: tuple[str, ...]
    """Nouns of the title, lower-cased, repeated ones included."""
    searched: tuple[str, str, str] = field(init=False)
    """Title, bullets and description in lower case, in which the reward looks for an attribute."""

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "searched",
            (self.title.lower(), " ".join(self.bullets).lower(), self.description.lower()),
        )

    def document(self) -> str:
        """The text that is indexed."""
        options = ", and ".join(
            f"{name}: {', '.join(values)}" for name, values in self.options.items()
        )
        first_bullet = "".join(self.bullets[:1])
        return " ".join((self.title, self.description, first_bullet, options)).lower()


def build_products(files: Files, nouns: dict[str, list[str]]) -> list[Product]:
    """The products of the files, in their order, but for those with an unusable or repeated asin.

    `nouns` has those of every title, by asin. ValueError for a price that is none.
    """
    products: dict[str, Product] = {}
    for raw in files.products:
        if not is_usable_asin(raw.asin) or raw.asin in products:
            continue
        try:
            prices = parse_prices(raw.pricing)
        except ValueError as error:
            raise ValueError(f"{files.product_file}: pricing of {raw.asin}: {error}") from None
        attributes = NO_ATTRIBUTES
        entry = files.attributes.get(raw.asin)
        if entry is not None and entry.attributes is not None:
            attributes = tuple(entry.attributes)
        products[raw.asin] = _build_product(raw, prices, attributes, tuple(nouns[raw.asin]))
    if not products:
        raise ValueError(
            f"{files.product_file}: no product has a usable asin (at most 10 characters, not nan)"
        )
    return list(products.values())


def is_usable_asin(asin: str) -> bool:
    """True if WebShop keeps a product of this asin."""
    return asin != "nan" and len(asin) <= 10


def _build_product(
    raw: RawProduct, prices: tuple[float, ...], attributes: tuple[str, ...], nouns: tuple[str, ...]
) -> Product:
    bullets = raw.small_description
    if isinstance(bullets, str):
        bullets = [bullets]
    price = prices[0]
    if len(prices) > 1:
        # Of a range the price is drawn, once, and the same in every process.
        price = random.Random(f"webshop price {raw.asin}").uniform(*prices)
    return Product(
        asin=raw.asin,
        title=raw.name,
        category=raw.category,
        query=raw.query.lower().strip(),
        path=tuple(part.strip() for part in raw.product_category.split("›")),
        description=raw.full_description,
        bullets=tuple(bullets),
        price=price,
        price_text=" to ".join(f"${price}" for price in prices),
        options=_options(raw),
        attributes=attributes,
        nouns=nouns,
    )


def _options(raw: RawProduct) -> dict[str, tuple[str, ...]]:
    if not isinstance(raw.customization_options, dict):
        return {}
    return {
        name.lower(): tuple(
            content.value.strip().replace("/", " | ").lower() for content in contents
        )
        for name, contents in raw.customization_options.items()
        if contents is not None
    }
