"""Presets and recipes; a package, `triptych.conf`, so that an installed triptych has presets."""
