"""The networks of docs/zoo.md: every torchvision classifier, and timm's families by one or two small members each."""

from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

TORCHVISION = torchvision.models.list_models(module=torchvision.models)

_TIMM = """
    bat_resnext26ts beit_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_lite_tiny coat_tiny
    coatnet_0_rw_224 coatnet_nano_rw_224 convformer_s18 convit_tiny convmixer_1024_20_ks9_p14 convnext_atto
    convnextv2_atto crossvit_9_240 cs3darknet_s cspdarknet53 cspresnet50 cspresnext50 darknet17 davit_tiny
    deit3_small_patch16_224 deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 densenet121 dla34 dla46_c dpn48b dpn68
    eca_nfnet_l0 eca_resnet33ts ecaresnet26t edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0
    efficientnet_es efficientnet_lite0 efficientnetv2_rw_t efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw
    eva02_tiny_patch14_224 fasternet_t0 fastvit_sa12 fastvit_t8 fbnetc_100 fbnetv3_b focalnet_tiny_srf gcresnet33ts
    gcresnext26ts gernet_s ghostnet_050 ghostnetv2_100 ghostnetv3_050 gmixer_12_224 gmlp_ti16_224 halonet26t
    hardcorenas_a hgnet_tiny hgnetv2_b0 hiera_tiny_224 hrnet_w18_small inception_next_atto inception_resnet_v2
    inception_v3 inception_v4 lambda_resnet26t lcnet_050 legacy_seresnet18 legacy_xception levit_128s levit_conv_128s
    mambaout_femto maxvit_nano_rw_256 maxxvit_rmlp_nano_rw_256 mixer_s32_224 mixnet_s mnasnet_small mobilenetv1_100
    mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs
    mobilevitv2_050 nest_tiny nf_regnet_b0 nf_resnet26 nfnet_f0 pit_ti_224 poolformer_s12 poolformerv2_s12 pvt_v2_b0
    rdnet_tiny regnetv_040 regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s
    res2next50 resmlp_12_224 resnest14d resnet18 resnet50d resnetaa34d resnetblur18 resnetv2_50 resnext50_32x4d
    rexnet_100 sedarknet21 selecsls42b semnasnet_075 seresnet18 seresnext26d_32x4d shvit_s1 skresnet18
    skresnext50_32x4d starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
    swinv2_tiny_window8_256 tf_efficientnetv2_b0 tinynet_e tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m
    twins_pcpvt_small twins_svt_small vgg11_bn visformer_tiny vit_relpos_small_patch16_224 vit_small_patch32_224
    vit_tiny_patch16_224 volo_d1_224 vovnet39a xception41 xception41p xcit_nano_12_p16_224
"""
TIMM = _TIMM.split()

NAMES = [f"torchvision:{name}" for name in TORCHVISION] + [f"timm:{name}" for name in TIMM]
# More than half a billion parameters each, several copies of which are held in float64.
SLOW = {"torchvision:vit_h_14", "torchvision:regnet_y_128gf"}
_SIDES = (64, 96, 128, 192, 224, 240, 256, 299)


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Return an untrained network in eval mode and two images of the smallest size (from 64) that it takes."""
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    for side in _SIDES:
        images = torch.randn(2, 3, side, side)
        for options in _options(library, model, side):
            try:
                network = timm.create_model(model, **options) if library == "timm" else _torchvision(model, options)
                with torch.no_grad():
                    network.eval()(images)
            except (TypeError, ValueError, AssertionError, RuntimeError):
                continue
            return network, images
    raise ValueError(f"{name} runs at none of the image sizes {_SIDES}")


def _options(library: str, model: str, side: int) -> list[dict[str, Any]]:
    """Return the ways to ask for a network that takes images of a size, most explicit first."""
    if library == "torchvision":
        return [{"image_size": side}] if model.startswith("vit") else [{}]
    return [{"img_size": side}, {}]


def _torchvision(model: str, options: dict[str, Any]) -> nn.Module:
    if model in ("inception_v3", "googlenet"):
        options = {**options, "init_weights": False}  # minutes of truncated normals, and a warning
    network: nn.Module = torchvision.models.get_model(model, weights=None, **options)
    return network
