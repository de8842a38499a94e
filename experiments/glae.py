"""GLAE, one vector of 512 a text: `python train.py --config experiments/glae.py data.path=FOLDER`, ten minutes on two
CPU cores. FOLDER as for novels.py.

A micro-batch has batch_size × 8 = 32 texts of 128 bytes; these are what uniformity compares.
"""

exp_config = {
    "run_name": "glae",
    "model": {"kind": "glae"},
    "data": {"validation_bytes": 256 * 1024},
    "sequence_length": 1026,
    "batch_size": 4,
    "max_steps": 2000,
    "max_minutes": 10,
    "learning_rate": 1e-2,
    "scheduler_specific_kwargs": {"num_decay_steps": 1200},
    "sample_prompt_for_generation": "It was a cold morning, and the ",
}
