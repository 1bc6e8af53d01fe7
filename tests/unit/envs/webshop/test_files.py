"""WebShop's data files: how they are read, and what is said when they cannot be."""

import json
import subprocess
import sys

import pytest

from envs.webshop.environment import WebShop, load_world
from envs.webshop.files import parse_prices, read_files
from envs.webshop.generate import generate, write_files
from envs.webshop.nouns import find_title_nouns, guess_nouns
from envs.webshop.products import NO_ATTRIBUTES, Product, build_products
from tests.fixtures.webshop import raw_product, write_shop

PRODUCTS = "items_shuffle_1000.json"
ATTRIBUTES = "items_ins_v2_1000.json"
HUMAN = "items_human_ins.json"


def products_of(directory) -> list[Product]:
    files = read_files(directory)
    return build_products(files, find_title_nouns(files))


def one(tmp_path, **fields) -> Product:
    return products_of(write_shop(tmp_path, products=[raw_product(**fields)]))[0]


def test_a_product_is_read_as_webshop_reads_it(tmp_path):
    read = one(tmp_path)
    assert (read.title, read.query, read.description, read.bullets) == (
        "Acme Cotton Shirt",
        "shirt",
        "A shirt.",
        ("Soft.", "Warm."),
    )
    assert read.path == ("Clothing", "Tops", "Shirts")
    assert read.options == {"color": ("navy | white", "red")}
    assert (read.price, read.price_text) == (19.99, "$19.99")


def test_what_is_indexed_is_title_description_first_bullet_and_options(tmp_path):
    assert one(tmp_path).document() == "acme cotton shirt a shirt. soft. color: navy | white, red"


def test_several_options_are_indexed_with_and_between_them(tmp_path):
    options = {"Color": [{"value": "Red"}], "Size": [{"value": "S"}, {"value": "L"}]}
    assert (
        one(tmp_path, customization_options=options)
        .document()
        .endswith("color: red, and size: s, l")
    )


def test_a_single_bullet_may_be_a_text(tmp_path):
    assert one(tmp_path, small_description="Soft.").bullets == ("Soft.",)


@pytest.mark.parametrize(
    ("pricing", "prices"),
    [
        ("$877.80", (877.8,)),
        ("$1,299.00", (1299.0,)),
        ("$10.50 - $20", (10.5, 20.0)),
        ("", (100.0,)),
        (None, (100.0,)),
        ("$1$2$3", (1.0, 2.0)),
    ],
)
def test_prices(pricing, prices):
    assert parse_prices(pricing) == prices


def test_a_range_is_shown_whole_and_its_price_drawn_once(tmp_path):
    read = one(tmp_path, pricing="$10.00 - $20.5")
    assert read.price_text == "$10.0 to $20.5"
    assert 10 <= read.price <= 20.5
    assert read.price == one(tmp_path, pricing="$10.00 - $20.5").price


def test_unusable_and_repeated_asins_are_dropped(tmp_path):
    asins = ["nan", "B0000000001", "B000000001", "B000000001", "B000000002"]
    products = [raw_product(asin, name=f"Shirt {i}") for i, asin in enumerate(asins)]
    assert [read.title for read in products_of(write_shop(tmp_path, products=products))] == [
        "Shirt 2",
        "Shirt 4",
    ]


def test_a_product_of_which_nothing_is_known_has_the_dummy_attribute(tmp_path):
    write_shop(tmp_path, products=[raw_product("B1"), raw_product("B2")], attributes={"B1": {}})
    assert [read.attributes for read in products_of(tmp_path)] == [NO_ATTRIBUTES, NO_ATTRIBUTES]


def test_nouns_come_from_the_table_and_are_guessed_without_it(tmp_path):
    write_shop(
        tmp_path,
        products=[raw_product("B1"), raw_product("B2", name="The 2 Breathable Wool Socks, Black")],
    )
    (tmp_path / "title_nouns.json").write_text(json.dumps({"B1": ["shirt"]}))
    assert [read.nouns for read in products_of(tmp_path)] == [("shirt",), ("wool", "socks")]
    assert guess_nouns("") == []


@pytest.mark.slow
def test_that_nouns_are_guessed_is_said_and_how_to_have_exact_ones(tmp_path, caplog):
    write_shop(tmp_path)
    read = read_files(tmp_path)
    find_title_nouns(read)
    titles = len({raw.asin for raw in read.products})
    assert (
        f"the nouns of {titles} titles are guessed" in caplog.text
        and f"python -m envs.webshop.nouns {tmp_path}" in caplog.text
    )
    caplog.clear()
    find_title_nouns(generate()[0])
    assert not caplog.text


def test_of_a_repeated_asin_the_nouns_are_those_of_the_product_that_is_sold(tmp_path):
    write_shop(
        tmp_path,
        products=[raw_product("B1", name="Wool Socks"), raw_product("B1", name="Steel Kettle")],
    )
    assert [(read.title, read.nouns) for read in products_of(tmp_path)] == [
        ("Wool Socks", ("wool", "socks"))
    ]


@pytest.mark.slow
def test_without_spacy_the_noun_table_says_what_to_install(tmp_path):
    write_shop(tmp_path)
    code = (
        "import sys; sys.modules['spacy'] = None; sys.argv[1:] = [sys.argv[1]]; from "
        "envs.webshop.nouns import main; main()"
    )
    failed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert ".[webshop]" in failed.stderr


def test_the_full_files_are_read_where_the_small_ones_are_missing(tmp_path):
    write_shop(tmp_path, products=[raw_product("B1")])
    (tmp_path / PRODUCTS).rename(tmp_path / "items_shuffle.json")
    (tmp_path / ATTRIBUTES).rename(tmp_path / "items_ins_v2.json")
    assert [read.asin for read in products_of(tmp_path)] == ["B1"]


def test_the_generated_catalogue_survives_being_written_and_read(tmp_path):
    made, _ = generate()
    write_files(made, tmp_path)
    read = read_files(tmp_path)
    written = json.loads((tmp_path / "items_shuffle_1000.json").read_text())
    assert all(product["images"] for product in written), (
        "WebShop's own loader takes the first one's address"
    )
    assert (read.products, read.attributes, read.human, read.nouns) == (
        made.products,
        made.attributes,
        made.human,
        made.nouns,
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"products": "[{"}, rf"{PRODUCTS}: not valid JSON"),
        ({"products": "[" + json.dumps(raw_product())[:-20]}, rf"{PRODUCTS}: not valid JSON"),
        ({"products": []}, rf"{PRODUCTS}: the list of products is empty"),
        ({"products": {}}, rf"{PRODUCTS}: the whole file: Expected `array`"),
        (
            {"products": [{"asin": "B1"}]},
            rf"{PRODUCTS}: \[0\]: Object missing required field `name`",
        ),
        (
            {"products": [raw_product(), raw_product(name=5)]},
            rf"{PRODUCTS}: \[1\]\.name: Expected `str`, got `int`",
        ),
        (
            {"products": [raw_product(customization_options={"size": [{"image": ""}]})]},
            r"options.*missing required field `value`",
        ),
        (
            {"products": [raw_product("B1", pricing="$1.2.3")]},
            rf"{PRODUCTS}: pricing of B1: '\$1\.2\.3' is no price",
        ),
        ({"products": [raw_product("B1", pricing="cheap")]}, r"pricing of B1: 'cheap' is no price"),
        ({"products": [raw_product("nan")]}, rf"{PRODUCTS}: no product has a usable asin"),
        ({"attributes": []}, rf"{ATTRIBUTES}: the whole file: Expected `object`"),
        (
            {"attributes": {"B1": {"attributes": "cotton"}}},
            rf"{ATTRIBUTES}: \[\.\.\.\]\.attributes: Expected `array",
        ),
        (
            {"human": {"B1": [{"instruction": "x"}]}},
            rf"{HUMAN}: .*missing required field `instruction_attributes`",
        ),
        (
            {"human": "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")},
            rf"{HUMAN}: not valid JSON",
        ),
    ],
)
def test_a_malformed_file_is_an_error_that_names_file_and_field(tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        load_world(str(write_shop(tmp_path, **change)))


@pytest.mark.parametrize("missing", [PRODUCTS, ATTRIBUTES, HUMAN])
def test_a_missing_file_is_an_error_that_names_it(tmp_path, missing):
    (write_shop(tmp_path) / missing).unlink()
    with pytest.raises(ValueError, match=rf"WEBSHOP_DATA.*has no {missing}"):
        WebShop(data=str(tmp_path))


def test_a_missing_directory_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"WEBSHOP_DATA.*nowhere is not a directory"):
        WebShop(data=str(tmp_path / "nowhere"))
