"""The whole deployment under load, broken at random, and judged by all that anybody was shown."""
