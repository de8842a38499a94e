"""A generative language autoencoder: `python train.py --config experiments/glae.py data.path=FOLDER`.

One vector of 512 numbers for a text of up to 128 bytes, from which the text is decoded. Ten minutes on a laptop.
"""

exp_config = {
    "run_name": "glae",
    "model": {"kind": "glae"},
    "data": {"validation_bytes": 256 * 1024},
    "sequence_length": 1026,
    "batch_size": 8,
    "max_steps": 2000,
    "max_minutes": 9.0,
    "learning_rate": 1e-2,
    "muon_learning_rate": 0.04,
    "scheduler_specific_kwargs": {"num_decay_steps": 1200},
    "sample_prompt_for_generation": "It was a cold morning, and the ",
    "checkpoint_dir": "checkpoints_glae",
}
