"""A generative language autoencoder whose decoder has seven layers, for a GPU:
`python train.py --config experiments/glae_7_layers.py data.path=FOLDER`.

One vector of 4,096 numbers for a text of up to 512 bytes.
"""

exp_config = {
    "run_name": "glae_7_layers",
    "model": {
        "kind": "glae",
        "embedding_width": 4096,
        "memory_width": 1024,
        "ngram_rows": 262_144,
        "ngram_width": 256,
        "encoder": {"width": 512, "layers": 4, "heads": 8, "mlp_width": 1408},
        "decoder": {"width": 768, "layers": 7, "heads": 12, "window": 512, "mlp_width": 2048},
        "decoder_ngram_rows": 65_536,
        "decoder_ngram_width": 128,
    },
    "sequence_length": 4098,
    "batch_size": 16,
    "max_steps": 100_000,
    "max_minutes": None,
    "learning_rate": 2e-3,
    "muon_learning_rate": 0.01,
    "warmup_steps": 500,
    "scheduler_specific_kwargs": {"num_decay_steps": 40_000},
    "validation_interval": 5_000,
    "generation_interval": 5_000,
    "checkpoint_interval": 1_000,
    "checkpoint_dir": "checkpoints_glae_7_layers",
}
