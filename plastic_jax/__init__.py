"""Keeping neural networks able to learn: continual backprop and its kin as optax transformations over pytrees."""

from plastic_jax.checks import ReplacementWarning
from plastic_jax.diagnostics import metrics
from plastic_jax.diagnostics.diagnose import Diagnosis, diagnose
from plastic_jax.diagnostics.step_sizes import step_size_metrics
from plastic_jax.diagnostics.trainability import Trainability, trainability
from plastic_jax.matrices import UnreadWarning
from plastic_jax.methods.boundary_resets import (
    BoundaryResetState,
    reset_head_at_boundary,
    reset_network_at_boundary,
    reset_optimizer_at_boundary,
)
from plastic_jax.methods.continual_backprop import (
    CONTINUAL_BACKPROP_STATIC_ARGS,
    ContinualBackpropState,
    continual_backprop,
)
from plastic_jax.methods.cpr import CPR_STATIC_ARGS, CPRState, cpr
from plastic_jax.methods.dash import DASHState, dash
from plastic_jax.methods.fire import FireState, fire, fire_at_boundary
from plastic_jax.methods.hare_and_tortoise import HareAndTortoiseState, hare_and_tortoise
from plastic_jax.methods.l2_init import L2InitState, l2_init, l2_init_after_first_update
from plastic_jax.methods.normalize_and_project import NormalizeAndProjectState, normalize_and_project
from plastic_jax.methods.parseval import ParsevalState, parseval
from plastic_jax.methods.redo import REDO_STATIC_ARGS, RedoState, redo
from plastic_jax.methods.regrama import REGRAMA_STATIC_ARGS, RegramaState, regrama
from plastic_jax.methods.shrink_and_perturb import (
    ShrinkAndPerturbState,
    published_shrink_and_perturb,
    shrink_and_perturb,
    shrink_and_perturb_at_boundary,
)
from plastic_jax.methods.snr import SNR_STATIC_ARGS, SNRState, snr
from plastic_jax.methods.sparse import SPARSE_STATIC_ARGS, SparseState, connected, sparse
from plastic_jax.methods.spectral import SpectralState, spectral
from plastic_jax.methods.swr import SWRState, swr
from plastic_jax.methods.upgd import FeatureUPGDState, UPGDState, ada_upgd, feature_upgd, upgd
from plastic_jax.methods.weight_clipping import WeightClippingState, weight_clipping
from plastic_jax.methods.weight_decay import weight_decay
from plastic_jax.networks import MLP, BatchNorm, ConvNet, ResNet
from plastic_jax.networks.convolutions import as_products
from plastic_jax.optimizers.adam import AdamState, adam
from plastic_jax.optimizers.autostep import AutostepState, autostep
from plastic_jax.optimizers.curvature import gauss_newton, local_curvature
from plastic_jax.optimizers.fade import FadeState, fade
from plastic_jax.optimizers.hypergradient import HypergradientState, hypergradient
from plastic_jax.optimizers.idbd import IDBDState, idbd, k1
from plastic_jax.optimizers.intentional import IntentionalState, intentional
from plastic_jax.optimizers.metaoptimize import MetaOptimizeState, metaoptimize
from plastic_jax.optimizers.muon import muon
from plastic_jax.optimizers.obgd import ObGDState, obgd
from plastic_jax.optimizers.parameter_free import dog, mechanic, prodigy
from plastic_jax.optimizers.smd import SMDState, smd
from plastic_jax.optimizers.step_sizes import of_new_weights, read_step_sizes
from plastic_jax.optimizers.swift_td import SwiftTDState, swift_td
from plastic_jax.replacement.effect import replacement_effect
from plastic_jax.replacement.initializers import Initializer, UnitInitializer
from plastic_jax.replacement.utility import UTILITIES, UnitStats, Utility
from plastic_jax.units import FeatureMeans, Slice, UnitGraph, UnitGroup, trace_units

__all__ = [
    "CONTINUAL_BACKPROP_STATIC_ARGS",
    "CPR_STATIC_ARGS",
    "MLP",
    "REDO_STATIC_ARGS",
    "REGRAMA_STATIC_ARGS",
    "SNR_STATIC_ARGS",
    "SPARSE_STATIC_ARGS",
    "UTILITIES",
    "AdamState",
    "AutostepState",
    "BatchNorm",
    "BoundaryResetState",
    "CPRState",
    "ContinualBackpropState",
    "ConvNet",
    "DASHState",
    "Diagnosis",
    "FadeState",
    "FeatureMeans",
    "FeatureUPGDState",
    "FireState",
    "HareAndTortoiseState",
    "HypergradientState",
    "IDBDState",
    "Initializer",
    "IntentionalState",
    "L2InitState",
    "MetaOptimizeState",
    "NormalizeAndProjectState",
    "ObGDState",
    "ParsevalState",
    "RedoState",
    "RegramaState",
    "ReplacementWarning",
    "ResNet",
    "SMDState",
    "SNRState",
    "SWRState",
    "ShrinkAndPerturbState",
    "Slice",
    "SparseState",
    "SpectralState",
    "SwiftTDState",
    "Trainability",
    "UPGDState",
    "UnitGraph",
    "UnitGroup",
    "UnitInitializer",
    "UnitStats",
    "UnreadWarning",
    "Utility",
    "WeightClippingState",
    "ada_upgd",
    "adam",
    "as_products",
    "autostep",
    "connected",
    "continual_backprop",
    "cpr",
    "dash",
    "diagnose",
    "dog",
    "fade",
    "feature_upgd",
    "fire",
    "fire_at_boundary",
    "gauss_newton",
    "hare_and_tortoise",
    "hypergradient",
    "idbd",
    "intentional",
    "k1",
    "l2_init",
    "l2_init_after_first_update",
    "local_curvature",
    "mechanic",
    "metaoptimize",
    "metrics",
    "muon",
    "normalize_and_project",
    "obgd",
    "of_new_weights",
    "parseval",
    "prodigy",
    "published_shrink_and_perturb",
    "read_step_sizes",
    "redo",
    "regrama",
    "replacement_effect",
    "reset_head_at_boundary",
    "reset_network_at_boundary",
    "reset_optimizer_at_boundary",
    "shrink_and_perturb",
    "shrink_and_perturb_at_boundary",
    "smd",
    "snr",
    "sparse",
    "spectral",
    "step_size_metrics",
    "swift_td",
    "swr",
    "trace_units",
    "trainability",
    "upgd",
    "weight_clipping",
    "weight_decay",
]
