"""HTML as a browser would read it."""

import html.parser


def text_of(markup):
    """What is between the tags, as a list; all tags must be closed in order."""
    opened, seen = [], []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

        def handle_data(self, data):
            seen.append(data)

    Parser().feed(markup)
    assert opened == []
    return seen
