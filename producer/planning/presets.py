"""Good combinations of recipe options, by name, and what each method takes where nobody says.

What a person writes on the command line goes before the preset, and the preset before the method's own defaults.
"""

from typing import Any

#: method -> recipe options. The notebook's are its own; 0.05 is Lucid's learning rate.
METHODS: dict[str, dict[str, Any]] = {
    "fourier": {"steps": 64, "step_size": 0.05},
    "notebook": {"steps": 40, "step_size": 1.0},
    "maco": {"steps": 128, "step_size": 0.2},
    "pixel": {"steps": 64, "step_size": 0.05},
}

#: preset -> job options; the step size is the method's, also where a person asks for another one with a preset
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

DEFAULT_METHOD = "fourier"
