"""The continuous text autoencoder at the size of its authors' code, for a GPU and a tokenizer file:
`python train.py --config experiments/cta_full.py data.path=FOLDER data.tokenizer=tokenizer.json`.

Widths 512, 1024 and 2048, crops of 128 tokens, 80,000 steps.
"""

exp_config = {
    "run_name": "cta_full",
    "model": {"kind": "cta", "width": 512, "blocks": 2},
    "sequence_length": 128,
    "batch_size": 48,
    "max_steps": 80_000,
    "max_minutes": None,
    "learning_rate": 1e-4,
    "muon_learning_rate": 1e-3,
    "scheduler_type": "cosine",
    "scheduler_specific_kwargs": {},
    "warmup_steps": 100,
    "validation_interval": 5_000,
    "generation_interval": 1_000_000,
    "checkpoint_interval": 1_000,
    "checkpoint_dir": "checkpoints_cta_full",
}
