"""The kinds of model in this folder: name → module and class, imported only when one is used."""

KINDS = {
    "hier_ae": "abstractinator.components.hierarchical.hierarchical_aelm:HierarchicalAELM",
    "cta": "abstractinator.components.cta.continuous_text_autoencoder:ContinuousTextAutoencoder",
}
DEFAULT = "hier_ae"
