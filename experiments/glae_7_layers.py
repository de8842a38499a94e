"""A GLAE of seven layers, one in the encoder and six in the decoder, for a GPU: 2,048 numbers for texts of 512 bytes.

`python train.py --config experiments/glae_7_layers.py data.path=FOLDER`, FOLDER as for novels.py.
"""

exp_config = {
    "run_name": "glae_7_layers",
    "model": {
        "kind": "glae",
        "embedding_width": 2048,
        "memory_width": 512,
        "ngram_rows": 262_144,
        "ngram_width": 256,
        "encoder": {"width": 768, "layers": 1, "heads": 12, "mlp_width": 2048},
        "decoder": {"width": 1024, "layers": 6, "heads": 16, "window": 512, "mlp_width": 2816},
        "decoder_ngram_rows": 65_536,
        "decoder_ngram_width": 128,
    },
    "sequence_length": 4098,
    "batch_size": 16,
    "max_steps": 20_000,
    "max_minutes": None,
    "learning_rate": 5e-3,
    "muon_learning_rate": 0.02,
    "warmup_steps": 200,
    "scheduler_specific_kwargs": {"num_decay_steps": 8000},
    "sample_prompt_for_generation": "It was a cold morning, and the ",
}
