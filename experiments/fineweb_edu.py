"""A large model on FineWeb-Edu, streamed from the hub: 768 wide, 49,404 codes, 16 layers on top. For a GPU."""

exp_config = {
    "run_name": "fineweb_edu",
    "project_name": "abstractinator",
    "data": {
        "dataset_name": "HuggingFaceFW/fineweb-edu",
        "dataset_config": "sample-10BT",
        "dataset_train_split": "train",
        "text_column_name": "text",
        "validation_fraction": 0.001,
    },
    "model": {
        "autoencoder_fraction": 0.1,
        "levels": [
            {
                "compressor": {
                    "entropy_model": {
                        "transformer": {"width": 256, "layers": 2, "heads": 4, "window": 128, "mlp_width": 768},
                        "ngram_rows": 131072,
                    },
                    "segmentation": {
                        "rule": "threshold",
                        "target_tokens_per_code": 4.5,
                        "min_tokens_per_code": 2,
                        "max_tokens_per_code": 12,
                        "train_fraction": 0.05,
                    },
                    "quantizer": {"kind": "vq", "codebook_size": 49404, "codes_per_segment": 2},
                    "value_width": 64,
                    "layers": 2,
                    "mlp_width": 2048,
                },
                "expander": {
                    "layers": 3,
                    "mlp_width": 2048,
                    "position_width": 128,
                    "predictor": {"width": 512, "layers": 4, "heads": 8, "window": 128, "mlp_width": 1536},
                    "ngram_rows": 262144,
                },
            }
        ],
        "top_transformer_config": {
            "transformer": {"width": 768, "layers": 16, "heads": 12, "window": 1024, "mlp_width": 2048},
            "ngram_rows": 262144,
        },
    },
    "sequence_length": 8192,
    "batch_size": 16,
    "gradient_accumulation_steps": 4,
    "max_steps": 20000,
    "max_minutes": None,
    "learning_rate": 1e-3,
    "muon_learning_rate": 0.01,
    "warmup_steps": 500,
    "scheduler_type": "cosine",
    "scheduler_specific_kwargs": {},
    "validation_interval": 500,
    "generation_interval": 500,
    "checkpoint_interval": 500,
    "sample_prompt_for_generation": "The study of ",
}
