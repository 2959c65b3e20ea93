"""The page of `pad-vllm play`: files for a browser, in static/, and the routes that serve them."""
