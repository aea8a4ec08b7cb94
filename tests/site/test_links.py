"""The checker that is trusted with the links of the built book."""

import links


def test_the_checker_names_page_line_and_address_of_a_dead_link(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here">ok</a> <a href="b.html#there">ok</a>\n'
        '<a href="#gone">x</a><img src="gone.png">\n'
        '<a href="gone.html">x</a><a href="b.html#gone">x</a>\n'
        '<a href="https://example.org/gone">outside</a><a href="%61.html">ok</a>'
    )
    (tmp_path / "b.html").write_text('<a id="there" href="a.html">ok</a><script src="s.js">')
    (tmp_path / "s.js").write_text("")
    assert links.dead(tmp_path, links.read(tmp_path)) == [
        "a.html, line 2: #gone",
        "a.html, line 2: gone.png",
        "a.html, line 3: gone.html",
        "a.html, line 3: b.html#gone",
    ]
