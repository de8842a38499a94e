"""The continuous text autoencoder with 26M parameters, for a GPU and a tokenizer file:
`python train.py --config experiments/cta_25m.py data.path=FOLDER data.tokenizer=tokenizer.json`.

Crops of 128 tokens, 80,000 steps, as its authors train it.
"""

exp_config = {
    "run_name": "cta_25m",
    "model": {"kind": "cta", "width": 256, "blocks": 2},
    "sequence_length": 128,
    "batch_size": 48,
    "max_steps": 80_000,
    "max_minutes": None,
    "learning_rate": 1e-3,
    "muon_learning_rate": 1e-2,
    "scheduler_type": "cosine",
    "scheduler_specific_kwargs": {},
    "warmup_steps": 100,
    "validation_interval": 5_000,
    "generation_interval": 1_000_000,
    "checkpoint_interval": 1_000,
    "checkpoint_dir": "checkpoints_cta_25m",
}
