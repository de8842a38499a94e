"""The continuous text autoencoder: `python train.py --config experiments/cta.py data.path=FOLDER`.

Convolutions make one latent of four numbers from four bytes, and the bytes again. Ten minutes on a laptop.
"""

exp_config = {
    "run_name": "cta",
    "model": {"kind": "cta"},
    "data": {"validation_bytes": 2 * 1024 * 1024},
    "sequence_length": 512,
    "batch_size": 8,
    "max_steps": 1600,
    "max_minutes": 9.0,
    "learning_rate": 1.5e-2,
    "muon_learning_rate": 0.06,
    "scheduler_specific_kwargs": {"num_decay_steps": 800},
    "warmup_steps": 30,
    "validation_interval": 400,
    "generation_interval": 100_000,
    "checkpoint_dir": "checkpoints_cta",
}
