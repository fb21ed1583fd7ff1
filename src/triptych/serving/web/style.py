"""How the page looks: system fonts, dark and light by the viewer's own setting."""

from __future__ import annotations

import gradio as gr

FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")


def theme() -> gr.themes.Base:
    """Gradio's default theme, but nothing of it comes from the network."""
    return gr.themes.Default(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=[gr.themes.Font(name) for name in FONTS],
        font_mono=[gr.themes.Font(name) for name in MONO],
    )


CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.heading { margin: 4px 0 0; }
.heading h1 { font-size: 1.5rem; font-weight: 650; margin: 0; }
.heading p { color: var(--body-text-color-subdued); margin: 2px 0 0; }
.pixelated img { image-rendering: pixelated; }
.pictures .preview img, .pictures .image-frame img {
  width: 100%; height: 100%; object-fit: contain;
}
.status { color: var(--body-text-color-subdued); font-size: .875rem; min-height: 1.75rem; }
.bar { background: var(--border-color-primary); border-radius: 2px; height: 4px; margin-top: 4px; }
.bar div { background: var(--color-accent); border-radius: 2px; height: 4px; }
.dice { min-width: 44px !important; max-width: 52px; align-self: end; }
.revealed { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; margin: 0 0 8px; }
.revealed div { background: var(--background-fill-secondary); border-radius: 8px; padding: 10px; }
.revealed .won { outline: 2px solid var(--color-accent); }
.tally { width: 100%; border-collapse: collapse; }
.tally { font-variant-numeric: tabular-nums; }
.tally th, .tally td { text-align: left; padding: 4px 12px 4px 0; }
.quiet { color: var(--body-text-color-subdued); }
"""
