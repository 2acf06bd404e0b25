"""A request that waits until something is programmed waits a second at most: most ports that
schemathesis makes up stand nowhere, and the time is better spent on more of them."""

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    query = case.query
    if query.get("wait") == "programmed" and str(query.get("timeout", "25")) in LONGER:
        query["timeout"] = 1


LONGER = {str(seconds) for seconds in range(2, 26)}
