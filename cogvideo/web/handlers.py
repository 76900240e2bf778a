"""All event handlers of the page, by area. One instance serves all visitors and stores none of their state."""

from __future__ import annotations

from cogvideo.web.form_handlers import FormHandlers
from cogvideo.web.handler_context import HandlerContext
from cogvideo.web.page_handlers import PageHandlers
from cogvideo.web.screen_handlers import ScreenHandlers
from cogvideo.web.upload_handlers import UploadHandlers


class Handlers:
    """Groups of handlers. Each handler answers one event with updates of components."""

    def __init__(self, context: HandlerContext) -> None:
        self.screen = ScreenHandlers(context)
        self.form = FormHandlers(context, self.screen)
        self.uploads = UploadHandlers(context)
        self.page = PageHandlers(context, self.form)
