"""The demonstration of the main job, with real parts; `demo/run` starts it."""
