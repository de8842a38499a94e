"""CALM, K = 4 bytes: `python train.py --config experiments/calm.py data.path=FOLDER`, ten minutes on two CPU cores.

An autoencoder of chunks comes first, then the language model of its latents; FOLDER as for novels.py.
"""

exp_config = {
    "run_name": "calm",
    "model": {"kind": "calm"},
    "data": {"validation_bytes": 512 * 1024},
    "max_steps": 2000,
    "max_minutes": 10,
    "scheduler_specific_kwargs": {"num_decay_steps": 800},
    "sample_prompt_for_generation": "It was a cold morning, and the ",
}
