"""Style of the page: system fonts, dark or light by the viewer's setting."""

from __future__ import annotations

import gradio as gr

FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")


def theme() -> gr.themes.Base:
    """Create Gradio's default theme without resources from the network."""
    return gr.themes.Default(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=[gr.themes.Font(name) for name in FONTS],
        font_mono=[gr.themes.Font(name) for name in MONO],
    )


CSS = """
.gradio-container { width: 100%; max-width: 1280px !important; margin: 0 auto !important; }
.heading h1 { font-size: 1.5rem; font-weight: 650; margin: 0; }
.heading p { color: var(--body-text-color-subdued); margin: 2px 0 0; }
.pixelated img { image-rendering: pixelated; }
.images .preview img, .images .image-frame img {
  width: 100%; height: 100%; object-fit: contain;
}
.pixelated.images .message img { min-width: 160px; }
.images [aria-label="Share"], .images [title="Share"] { display: none; }
.images .caption-label {
  background: rgb(0 0 0 / 55%); border: 0; color: white; font-size: .7rem; padding: 1px 6px;
}
.status { color: var(--body-text-color-subdued); font-size: .875rem; height: 1.75rem; }
.bar { background: var(--border-color-primary); border-radius: 2px; height: 4px; margin-top: 4px; }
.bar div { background: var(--color-accent); border-radius: 2px; height: 4px; }
.seed { align-items: end; }
.dice { font-size: 1.4rem; height: 42px; max-width: 48px; min-width: 48px !important; padding: 0; }
.revealed { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; margin: 0 0 8px; }
.revealed div { background: var(--background-fill-secondary); border-radius: 8px; padding: 10px; }
.revealed .won { outline: 2px solid var(--color-accent); }
.quiet { color: var(--body-text-color-subdued); }
"""
