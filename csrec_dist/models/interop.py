"""Weights from elsewhere: RecBole checkpoints of the models here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from csrec_dist.errors import UserError
from csrec_dist.models import SequentialModel, build
from csrec_dist.models.options import (
    BERT4RecConfig,
    GRU4RecConfig,
    ModelConfig,
    NARMConfig,
    NextItNetConfig,
    SASRecConfig,
    SRGNNConfig,
)
from csrec_dist.models.sasrec import LAYER_NORM_EPS
from csrec_dist.models.weight_files import require_finite

Weights = Mapping[str, Tensor]
RECBOLE_MAX_LENGTH = 50


class Converter(NamedTuple):
    """How one RecBole model is read: a parameter that identifies it, and its config and weights as ours.

    With a `mask_token` the last row of the item embedding is the mask's, and one of the positions is, too.
    """

    telltale: str
    config: Callable[[Mapping[str, Any]], ModelConfig]
    weights: Callable[[Weights], dict[str, Tensor]]
    mask_token: bool = False


def from_recbole(
    state_dict: Weights, config: Mapping[str, Any], *, items: Sequence[int] | None = None
) -> SequentialModel:
    """The model whose scores equal those of a RecBole checkpoint, in evaluation mode.

    RecBole's BERT4Rec drops the oldest item of every history to make room for the mask; the model here does so only for
    full histories. Its scores are therefore equal for full histories, and for others without their oldest item.
    RecBole's NextItNet reads the state of the last column, which is padding unless the history is full; the model here
    reads that of the last item, for which such a checkpoint was trained in full histories alone: equal for these.

    Args:
        state_dict: RecBole's parameters by name, row 0 of `item_embedding.weight` being padding.
        config: RecBole's config; its `model` names the model, else the parameters' names tell it.
            `MAX_ITEM_LIST_LENGTH` (default 50) is the longest history where no position embedding says so.
        items: RecBole's number of each item of the dataset here, in the order of its items.parquet: what its
            `dataset.token2id` gives for the raw ids. None where both number the items alike: RecBole in the order in
            which they appear among what it kept of the log, `prepare` in that of the whole log.

    Raises:
        UserError: `items` not of the checkpoint, an unknown model, a missing key, parameters that do not fit or are
            not finite, or a setting of RecBole's that the model here does not have.
    """
    converter = _converter(state_dict, config)
    num_items = _parameter(state_dict, "item_embedding.weight").shape[0] - 1 - converter.mask_token
    order = _order(items, num_items)
    if "position_embedding.weight" in state_dict:
        num_positions = state_dict["position_embedding.weight"].shape[0]
    else:
        num_positions = int(config.get("MAX_ITEM_LIST_LENGTH", RECBOLE_MAX_LENGTH))
    model = build(_config(converter, config), len(order), num_positions - converter.mask_token, seed=0)
    weights = {"item_table.weight": state_dict["item_embedding.weight"][1:], **converter.weights(state_dict)}
    weights |= {name: weights[name][order] for name in weights if name.startswith("item_table.")}
    require_finite(weights, "The RecBole checkpoint")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"The RecBole parameters do not fit their config: {error}") from None
    return model.eval()


def _converter(state_dict: Weights, config: Mapping[str, Any]) -> Converter:
    name = config.get("model")
    if name is None:
        name = next((key for key, converter in RECBOLE.items() if converter.telltale in state_dict), None)
    if name not in RECBOLE:
        received = f"names {name!r}" if name else "names no model and its parameters tell none"
        raise UserError(f"The RecBole config {received}; give `model`, one of {', '.join(sorted(RECBOLE))}.")
    return RECBOLE[name]


def _order(items: Sequence[int] | None, num_items: int) -> Tensor:
    """RecBole's row, from 0, of each of our items [V]."""
    if items is None:
        return torch.arange(num_items)
    if len(set(items)) < len(items) or not all(1 <= item <= num_items for item in items):
        raise UserError(
            f"`items` must hold {len(items)} different numbers of 1 to {num_items}, items of the RecBole checkpoint; "
            "give RecBole's number of each item of the dataset."
        )
    return torch.tensor(items) - 1


def _config(converter: Converter, config: Mapping[str, Any]) -> ModelConfig:
    try:
        return converter.config(config)
    except KeyError as error:
        raise UserError(f"The RecBole config has no key {error}; give the config of the checkpoint.") from None
    except ValidationError as error:
        refused = error.errors(include_url=False)[0]
        value = "".join(f"{key} = {refused['input']!r}: " for key in refused["loc"])
        raise UserError(
            f"The RecBole config is not one of the models here: {value}{refused['msg']}; give that of the checkpoint."
        ) from None


def _parameter(state_dict: Weights, name: str) -> Tensor:
    if name not in state_dict:
        raise UserError(f"The RecBole checkpoint has no parameter {name!r}; give its whole state_dict.")
    return state_dict[name]


def _rename(state_dict: Weights, prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Parameters under the given prefixes, with each prefix replaced; the others are left out."""
    return {
        new + name.removeprefix(old): tensor
        for old, new in prefixes.items()
        for name, tensor in state_dict.items()
        if name.startswith(old)
    }


def _require(config: Mapping[str, Any], key: str, value: Any) -> None:
    if config.get(key, value) != value:
        raise UserError(f"The RecBole config has {key} = {config[key]!r}; the model here has {value!r} only.")


def _gru4rec_config(config: Mapping[str, Any]) -> GRU4RecConfig:
    return GRU4RecConfig(
        width=config["embedding_size"],
        hidden=config["hidden_size"],
        num_layers=config["num_layers"],
        dropout=config["dropout_prob"],
    )


def _gru4rec_weights(state_dict: Weights) -> dict[str, Tensor]:
    return _rename(state_dict, {"gru_layers.": "gru.", "dense.": "output."})


def _narm_config(config: Mapping[str, Any]) -> NARMConfig:
    item_dropout, state_dropout = config["dropout_probs"]
    return NARMConfig(
        width=config["embedding_size"],
        hidden=config["hidden_size"],
        num_layers=config["n_layers"],
        dropout=item_dropout,
        state_dropout=state_dropout,
    )


def _narm_weights(state_dict: Weights) -> dict[str, Tensor]:
    prefixes = {"gru.": "gru.", "a_1.": "past.", "a_2.": "present.", "v_t.": "attention.", "b.": "output."}
    return _rename(state_dict, prefixes)


def _srgnn_config(config: Mapping[str, Any]) -> SRGNNConfig:
    return SRGNNConfig(width=config["embedding_size"], num_steps=config["step"])


def _srgnn_weights(state_dict: Weights) -> dict[str, Tensor]:
    names = {
        "gnn.linear_edge_in.": "step.incoming.",
        "gnn.linear_edge_out.": "step.outgoing.",
        "gnn.b_iah": "step.incoming_bias",
        "gnn.b_ioh": "step.outgoing_bias",
        "gnn.w_ih": "step.message_gates.weight",
        "gnn.b_ih": "step.message_gates.bias",
        "gnn.w_hh": "step.node_gates.weight",
        "gnn.b_hh": "step.node_gates.bias",
        "linear_one.": "present.",
        "linear_two.": "past.",
        "linear_three.": "attention.",
        "linear_transform.": "output.",
    }
    return _rename(state_dict, names)


def _nextitnet_config(config: Mapping[str, Any]) -> NextItNetConfig:
    return NextItNetConfig(
        width=config["embedding_size"],
        kernel=config["kernel_size"],
        num_blocks=config["block_num"],
        dilations=config["dilations"],
    )


def _nextitnet_weights(state_dict: Weights) -> dict[str, Tensor]:
    """Their convolutions are two-dimensional with a kernel of height 1: [d, d, 1, k] for our [d, d, k]."""
    renamed = _rename(state_dict, {"residual_blocks.": "blocks.", "final_layer.": "output."})
    parts = {".conv1.": ".near.", ".ln1.": ".near_norm.", ".conv2.": ".far.", ".ln2.": ".far_norm."}
    weights = {}
    for name, tensor in renamed.items():
        for theirs, ours in parts.items():
            name = name.replace(theirs, ours)
        weights[name] = tensor.squeeze(2) if tensor.dim() == 4 else tensor
    return weights


def _sasrec_config(config: Mapping[str, Any]) -> SASRecConfig:
    return SASRecConfig(**_transformer_keys(config))


def _bert4rec_config(config: Mapping[str, Any]) -> BERT4RecConfig:
    return BERT4RecConfig(mask_ratio=config["mask_ratio"], positions_from="start", **_transformer_keys(config))


def _transformer_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    _require(config, "hidden_act", "gelu")
    _require(config, "layer_norm_eps", LAYER_NORM_EPS)
    return {
        "width": config["hidden_size"],
        "inner_width": config["inner_size"],
        "num_layers": config["n_layers"],
        "num_heads": config["n_heads"],
        "dropout": config["hidden_dropout_prob"],
        "attention_dropout": config["attn_dropout_prob"],
    }


def _sasrec_weights(state_dict: Weights) -> dict[str, Tensor]:
    weights = {"positions": _parameter(state_dict, "position_embedding.weight")}
    weights |= _rename(state_dict, {"LayerNorm.": "norm."})
    num_layers = sum(name.endswith("multi_head_attention.query.weight") for name in state_dict)
    for layer in range(num_layers):
        weights |= _transformer_layer(state_dict, f"trm_encoder.layer.{layer}.", f"layers.{layer}.")
    return weights


def _bert4rec_weights(state_dict: Weights) -> dict[str, Tensor]:
    weights = {
        "mask": _parameter(state_dict, "item_embedding.weight")[-1:],
        "item_table.bias": _parameter(state_dict, "output_bias")[1:],
    }
    return (
        weights
        | _sasrec_weights(state_dict)
        | _rename(state_dict, {"output_ffn.": "output.", "output_ln.": "output_norm."})
    )


def _transformer_layer(state_dict: Weights, theirs: str, ours: str) -> dict[str, Tensor]:
    attention = theirs + "multi_head_attention."
    prefixes = {
        attention + "dense.": ours + "attention_output.",
        attention + "LayerNorm.": ours + "attention_norm.",
        theirs + "feed_forward.dense_1.": ours + "inner.",
        theirs + "feed_forward.dense_2.": ours + "inner_output.",
        theirs + "feed_forward.LayerNorm.": ours + "inner_norm.",
    }
    fused = {
        f"{ours}query_key_value.{kind}": torch.cat(
            [_parameter(state_dict, f"{attention}{part}.{kind}") for part in ("query", "key", "value")]
        )
        for kind in ("weight", "bias")
    }
    return _rename(state_dict, prefixes) | fused


RECBOLE: dict[str, Converter] = {
    "BERT4Rec": Converter("output_ffn.weight", _bert4rec_config, _bert4rec_weights, mask_token=True),
    "GRU4Rec": Converter("gru_layers.weight_ih_l0", _gru4rec_config, _gru4rec_weights),
    "NARM": Converter("v_t.weight", _narm_config, _narm_weights),
    "NextItNet": Converter("residual_blocks.0.conv1.weight", _nextitnet_config, _nextitnet_weights),
    "SASRec": Converter("trm_encoder.layer.0.multi_head_attention.query.weight", _sasrec_config, _sasrec_weights),
    "SRGNN": Converter("gnn.w_ih", _srgnn_config, _srgnn_weights),
}
"""By RecBole's names. BERT4Rec has all parameters that SASRec has, so it is looked for first."""
