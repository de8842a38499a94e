"""CALM-M at the paper's size, 371M parameters beside its autoencoder (arXiv 2510.27688, table 1). For a GPU.

That count is with a vocabulary of 128,256 ids: give one as `data.tokenizer=FILE`. On bytes it has 240M.
"""

exp_config = {
    "run_name": "calm_371m",
    "model": {
        "kind": "calm",
        "chunk_size": 4,
        "embedding_width": 1024,
        "transformer": {"width": 1024, "layers": 16, "heads": 16, "window": 2048, "mlp_width": 2752},
        "autoencoder": {"width": 512, "mlp_width": 1280, "latent_width": 128},
        "head": {"width": 1024, "blocks": 4, "mlp_width": 1024, "noise_width": 64},
        "autoencoder_fraction": 0.1,
    },
    "data": {
        "dataset_name": "HuggingFaceFW/fineweb-edu",
        "dataset_config": "sample-10BT",
        "dataset_train_split": "train",
        "text_column_name": "text",
        "validation_fraction": 0.001,
    },
    "sequence_length": 8192,
    "batch_size": 4,
    "gradient_accumulation_steps": 16,
    "max_steps": 50000,
    "max_minutes": None,
    "learning_rate": 3e-4,
    "muon_learning_rate": 0.01,
    "warmup_steps": 2000,
    "scheduler_type": "constant",
    "scheduler_specific_kwargs": {},
    "validation_interval": 1000,
    "generation_interval": 1000,
    "checkpoint_interval": 1000,
    "sample_prompt_for_generation": "The study of ",
}
