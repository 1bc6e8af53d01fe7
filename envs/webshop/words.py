"""The words of the generated catalogue: five categories as in WebShop, each with its kinds of
things, what they can be, and their options.

Attributes are adjectives or short phrases. A word with a star is a noun there ("fleece* lined");
the kinds of things and the brands are nouns throughout. Values of one option must differ for the
reward's fuzzy comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

PRODUCTS_OF_A_KIND = 18

_BRAND_NAMES = (
    "Alder Birch Cedro Dovra Elmo Fjell Grova Harlo Isolde Jorvik Kestrel Lumo Marlow Norden "
    "Orsa Pello Quill Rondo Sorrel Tarn "
    "Umbra Velora Wren Yarrow"
)
BRANDS = tuple(_BRAND_NAMES.split())

SIZES = ("small", "medium", "large", "x-large")
COLORS = (
    "black",
    "white",
    "navy",
    "red",
    "green",
    "gray",
    "pink",
    "brown",
    "teal",
    "ivory",
    "purple",
    "beige",
)
SCENTS = ("lavender", "vanilla", "coconut", "rose", "mint", "citrus", "jasmine")
FLAVORS = ("vanilla", "lemon", "mint", "caramel", "ginger", "cinnamon", "berry", "maple")


@dataclass(frozen=True)
class Group:
    """Kinds of things that share attributes and options.

    `kinds`: name -> usual price in dollars; `options`: name -> possible values.
    """

    category: str
    path: tuple[str, str]
    kinds: dict[str, int]
    attributes: tuple[str, ...]
    options: dict[str, tuple[str, ...]]


GROUPS = (
    Group(
        "fashion",
        ("Clothing, Shoes & Jewelry", "Clothing"),
        {
            "shirt": 24,
            "sweater": 38,
            "jacket": 70,
            "hoodie": 42,
            "skirt": 30,
            "jeans": 46,
            "pajamas": 34,
            "vest": 40,
        },
        (
            "machine* washable",
            "breathable",
            "slim",
            "fleece* lined",
            "quilted",
            "stretchy",
            "cotton*",
            "hooded",
        ),
        {"color": COLORS, "size": SIZES},
    ),
    Group(
        "fashion",
        ("Clothing, Shoes & Jewelry", "Shoes"),
        {"boots": 80, "sneakers": 60, "sandals": 35, "slippers": 22},
        ("waterproof", "lightweight", "leather*", "non slip*", "cushioned", "wide"),
        {"color": COLORS, "size": ("7", "8", "9", "11")},
    ),
    Group(
        "beauty",
        ("Beauty & Personal Care", "Skin Care"),
        {
            "lotion": 14,
            "sunscreen": 18,
            "face mask": 12,
            "lip balm": 8,
            "hand cream": 11,
            "body wash": 13,
        },
        ("fragrance* free", "cruelty* free", "hydrating", "vegan", "oil* free", "gentle", "tinted"),
        {"scent": SCENTS, "size": ("travel", "regular", "family")},
    ),
    Group(
        "beauty",
        ("Beauty & Personal Care", "Hair Care"),
        {
            "shampoo": 15,
            "conditioner": 16,
            "hair oil": 19,
            "hair spray": 12,
            "hair gel": 9,
            "hair brush": 17,
        },
        ("sulfate* free", "long lasting", "volumizing", "organic", "anti frizz*", "strengthening"),
        {"scent": SCENTS, "size": ("travel", "regular", "family")},
    ),
    Group(
        "electronics",
        ("Electronics", "Audio & Video"),
        {
            "headphones": 90,
            "speaker": 65,
            "projector": 180,
            "webcam": 55,
            "microphone": 75,
            "radio": 40,
        },
        ("noise* cancelling", "wireless", "portable", "rechargeable", "waterproof", "compact"),
        {"color": COLORS, "style": ("basic", "plus", "pro")},
    ),
    Group(
        "electronics",
        ("Electronics", "Computers & Accessories"),
        {
            "keyboard": 58,
            "mouse": 28,
            "charger": 24,
            "tablet case": 26,
            "monitor": 210,
            "router": 95,
        },
        ("backlit", "ergonomic", "fast charging", "foldable", "silent", "heavy duty*"),
        {"color": COLORS, "style": ("basic", "plus", "pro")},
    ),
    Group(
        "garden",
        ("Home & Kitchen", "Furniture"),
        {
            "sofa": 420,
            "bookshelf": 130,
            "desk": 190,
            "stool": 60,
            "coffee table": 150,
            "bed frame": 260,
        },
        ("solid wood*", "upholstered", "easy assembly*", "space* saving", "adjustable", "rustic"),
        {"color": COLORS, "size": ("twin", "full", "queen")},
    ),
    Group(
        "garden",
        ("Home & Kitchen", "Decor"),
        {"rug": 85, "lamp": 45, "curtain": 32, "pillow": 20, "blanket": 36, "mirror": 70},
        ("washable", "handmade", "hypoallergenic", "blackout*", "reversible", "woven"),
        {"color": COLORS, "size": SIZES},
    ),
    Group(
        "grocery",
        ("Grocery & Gourmet Food", "Snacks"),
        {
            "cookies": 9,
            "granola": 11,
            "crackers": 7,
            "trail mix": 13,
            "popcorn": 8,
            "protein bar": 16,
        },
        ("gluten* free", "sugar* free", "low sodium*", "crunchy", "plant* based", "keto* friendly"),
        {"flavor": FLAVORS, "pack": ("single", "sampler", "bulk")},
    ),
    Group(
        "grocery",
        ("Grocery & Gourmet Food", "Beverages"),
        {
            "coffee": 15,
            "tea": 10,
            "lemonade": 8,
            "hot cocoa": 12,
            "oat milk": 9,
            "energy drink": 20,
        },
        ("fair trade*", "caffeine* free", "unsweetened", "instant", "dairy* free", "bottled"),
        {"flavor": FLAVORS, "pack": ("single", "sampler", "bulk")},
    ),
)

# {what}: attributes and kind; {options}: ", size 8" and the like, or nothing.
HUMAN_WORDINGS = (
    "i need {what}{options}",
    "i am looking for {what}{options}",
    "find me {what}{options}.",
    "i want to buy {what}{options}",
    "please get {what}{options}.",
    "can you order {what}{options}",
)
SYNTHETIC_WORDING = "Buy {what}"

BULLETS = ("{Attribute}: made for daily use.", "You will like how {attribute} it is.")
DESCRIPTIONS = (
    "{Brand} makes this {kind}.",
    "A {kind} from {Brand}.",
    "Your next {kind}, by {Brand}.",
)
