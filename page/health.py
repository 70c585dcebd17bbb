"""Whether the page is ready: a route for load balancers and scripts that wait for it."""

from starlette.responses import JSONResponse
from starlette.routing import Route


async def healthz(request):
    """Answer 200 with the models' names. Models are loaded before the page listens: who gets an answer may ask."""
    return JSONResponse({"status": "ready", "models": request.app.get_blocks().shelf.names})


HEALTH = Route("/healthz", healthz)
