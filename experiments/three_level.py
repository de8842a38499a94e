"""Three levels: bytes, segments, pairs of segments, pairs of pairs."""

exp_config = {
    "run_name": "three_level",
    "model": {
        "levels": [
            {},
            {
                "compressor": {
                    "segmentation": {"rule": "fixed", "target_tokens_per_code": 2, "max_tokens_per_code": 2},
                    "quantizer": {"codes_per_segment": 6},
                    "value_width": 192,
                },
                "expander": {
                    "position_width": 192,
                    "predictor": {"width": 256, "layers": 2, "heads": 4, "window": 64, "mlp_width": 512},
                    "ngram_sizes": [1, 2],
                    "ngram_rows": 8192,
                    "match_sizes": [],
                },
            },
            {
                "compressor": {
                    "segmentation": {"rule": "fixed", "target_tokens_per_code": 2, "max_tokens_per_code": 2},
                    "quantizer": {"codes_per_segment": 12},
                    "value_width": 192,
                },
                "expander": {
                    "position_width": 256,
                    "predictor": {"width": 256, "layers": 2, "heads": 4, "window": 64, "mlp_width": 512},
                    "ngram_sizes": [1, 2],
                    "ngram_rows": 8192,
                    "match_sizes": [],
                },
            },
        ]
    },
}
