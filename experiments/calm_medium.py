"""CALM at the size of the paper's CALM-M, for a GPU and a tokenizer file:
`python train.py --config experiments/calm_medium.py data.path=FOLDER data.tokenizer=tokenizer.json`.

16 layers, 1024 wide, chunks of 4 tokens, an autoencoder of width 512. With a tokenizer of 128,256 tokens, such as
Llama 3's, it has 371M parameters (±1 %) beside its autoencoder, and 238M on bytes.
"""

exp_config = {
    "run_name": "calm_medium",
    "model": {
        "kind": "calm",
        "chunk_size": 4,
        "embedding_width": 1024,
        "transformer": {"width": 1024, "layers": 16, "heads": 16, "window": 512, "mlp_width": 2752},
        "autoencoder": {"width": 512, "mlp_width": 1280, "latent_width": 128},
        "head": {"width": 1024, "blocks": 4, "mlp_width": 1024, "noise_width": 64, "samples": 8, "targets": 100},
        "autoencoder_fraction": 0.1,
    },
    "sequence_length": 2048,
    "batch_size": 32,
    "max_steps": 250_000,
    "max_minutes": None,
    "learning_rate": 3e-4,
    "muon_learning_rate": 3e-3,
    "warmup_steps": 2_000,
    "scheduler_specific_kwargs": {"num_decay_steps": 50_000},
    "validation_interval": 5_000,
    "generation_interval": 5_000,
    "checkpoint_interval": 1_000,
    "checkpoint_dir": "checkpoints_calm_medium",
}
