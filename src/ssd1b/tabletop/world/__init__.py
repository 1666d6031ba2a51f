"""The world: scenes, what captions say of them, and the renderer that draws them."""
