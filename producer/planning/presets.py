"""Named sets of job options. Explicit options override a preset, and a preset overrides the defaults of the method."""

from typing import Any

#: preset -> options. The step size is not among them, because it depends on the method, which --method may override.
PRESETS: dict[str, dict[str, Any]] = {
    # F. Chollet, "Deep Learning with Python", notebook 5.4
    "notebook": {"method": "notebook", "size": "150", "steps": 40},
    # Lucid's render_vis: 128 px, 512 steps
    "lucid": {"method": "fourier", "size": "128", "steps": 512},
    # T. Fel et al., "Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization", 2023
    "maco": {"method": "maco", "size": "224", "steps": 256},
    # Keras's conv_filter_visualization.py of 2019: nine sizes up to 412 px, fifteen steps at each
    "keras2019": {"method": "notebook", "size": "412", "steps": 15, "octaves": 9, "octave_scale": 1.2},
    # a first look at a whole network
    "fast": {"method": "fourier", "size": "96", "steps": 32},
}
