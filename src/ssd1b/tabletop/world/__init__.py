"""The Tabletop world: scenes, their captions and the renderer."""
