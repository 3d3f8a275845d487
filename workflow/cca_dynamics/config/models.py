"""The config, key by key: bounds, defaults and one-line descriptions. The defaults are those of config.yaml.

`study.Config` adds the options of the results, each of which its own module describes. The JSON schema that editors and
the documentation read, workflow/schemas/config.schema.yaml, is written from these models by `make schema`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from cca_dynamics.config.base import (
    MANY,
    NULLABLE,
    Boolean,
    Count,
    Integer,
    Model,
    Number,
    RegistryKey,
    Seed,
    Text,
    each_once,
    option,
    overrides_of,
    reads,
    validate,
)
from cca_dynamics.errors import ConfigError, UserError
from cca_dynamics.runtime.fingerprints import module_fingerprint

STAGES = ("dataset", "corpus", "train", "activations", "ablation", "compute", "claims", "plot", "merge")
"""The stages of a study that read the config, in order; each is a command of `cca-dynamics`."""


# Data.


class DatasetOptions(Model):
    """What all datasets share."""

    registries = ("data.datasets:DATASETS",)


class Mnist1d(DatasetOptions):
    """Signals of length 40 in ten classes, generated offline."""

    name: Literal["mnist1d"] = "mnist1d"
    train_size: Integer = Field(4000, ge=100, le=MANY, description="Number of training signals.")
    test_size: Integer = Field(1000, ge=50, le=MANY, description="Number of test signals.")
    seed: Seed = Field(42, description="Seed of the generator.")


SubsetSize = Annotated[
    Annotated[Integer, Field(ge=50, le=MANY)] | None,
    Field(description="A subset of so many images, the classes as frequent as in the whole; null: all."),
]


class ImageSubset(DatasetOptions):
    """Images of which a subset may be drawn."""

    train_size: SubsetSize = None
    test_size: SubsetSize = None
    seed: Seed = Field(0, description="Draws the subset.")


class TorchvisionImages(ImageSubset):
    """Images that torchvision knows where to download."""

    folder: Text = option("data", min_length=1, description="Where torchvision keeps it or downloads it to.")


class Cifar10(TorchvisionImages):
    """Colour images of 32 × 32 in ten classes."""

    name: Literal["cifar10"] = "cifar10"


class FashionMnist(TorchvisionImages):
    """Grey images of 28 × 28 in ten classes."""

    name: Literal["fashion_mnist"] = "fashion_mnist"


DIGITS, TEST_DIGITS = 1797, 300
"""Images that scikit-learn ships, and how many of them are for testing."""


class Digits(ImageSubset):
    """Handwritten digits that scikit-learn ships: grey images of 8 × 8 in ten classes."""

    name: Literal["digits"] = "digits"
    train_size: Annotated[Integer, Field(ge=50, le=DIGITS - TEST_DIGITS)] | None = Field(
        None, description="A subset of so many images, the classes as frequent as in all; null: all 1,497."
    )
    test_size: Annotated[Integer, Field(ge=50, le=TEST_DIGITS)] | None = Field(
        None, description="A subset of so many images, the classes as frequent as in all; null: all 300."
    )
    seed: Seed = Field(0, description="Draws which images are for testing, and the subsets.")


class ImageFolder(ImageSubset):
    """Image files of the user's own."""

    name: Literal["image_folder"] = "image_folder"
    folder: Text = Field(
        min_length=1,
        description="Holds {train,test}/<class>/ with image files; val/ stands for test/ where there is none.",
    )
    resize: Annotated[Integer, Field(ge=4, le=1024)] | None = Field(
        None, description="Height and width to scale to; null: all images have one size."
    )
    cache: Text = option("data/cache", min_length=1, description="Folder that keeps the decoded images.")


Dataset = Annotated[Mnist1d | Digits | Cifar10 | FashionMnist | ImageFolder, Field(discriminator="name")]
"""Adding a dataset: its keys as a model here, its function and record in data/datasets.py."""


class TextOptions(Model):
    """What all corpora share."""

    registries = ("data.corpora:CORPORA",)

    vocabulary: Annotated[Integer, Field(ge=2, le=MANY)] | None = Field(
        None, description="Only the most frequent tokens keep a number of their own, so many; null: all."
    )


class Documentation(TextOptions):
    """Docstrings of an installed package, character by character."""

    name: Literal["documentation"] = "documentation"
    package: Text = Field(
        "matplotlib",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Installed package whose docstrings are read, as an import names it.",
    )
    train_characters: Integer = Field(200_000, ge=1000, le=MANY, description="Size of the training text.")
    valid_characters: Integer = Field(30_000, ge=1000, le=MANY, description="Size of the held-out text.")


class TextFolder(TextOptions):
    """Text files of the user's own."""

    name: Literal["text_folder"] = "text_folder"
    folder: Text = Field(min_length=1, description="Holds the text files.")
    level: Literal["word", "character"] = Field("word", description="What a token is.")
    train: Text = Field("train.txt", min_length=1, description="Name of the file to train on.")
    valid: Text = Field("valid.txt", min_length=1, description="Name of the file to evaluate on.")


Corpus = Annotated[Documentation | TextFolder, Field(discriminator="name")]
"""Adding a corpus: its keys as a model here, its function and record in data/corpora.py."""


# Networks.


def _not_softmax(layer: str) -> str:
    if layer == "softmax":
        raise PydanticCustomError("string_pattern_mismatch", "softmax", {"pattern": "a layer other than softmax"})
    return layer


LAYER = (
    "conv1, conv2, ... (in a resnet conv1, block1, block2, ...; in a module its network.layers) or softmax, letters, "
    "digits, dots and underscores"
)
Layer = Annotated[Text, Field(pattern=r"^[A-Za-z0-9_.]+$", description=LAYER)]
HiddenLayer = Annotated[Layer, AfterValidator(_not_softmax)]
Channels = Annotated[tuple[Annotated[Integer, Field(ge=1, le=65536)], ...], Field(min_length=1, max_length=64)]
Multiplier = Annotated[Number, Field(gt=0, le=64)]


class NetworkOptions(Model):
    """What all architectures share."""

    registries = ("networks.architectures:NETWORKS", "networks.convolutional:COMPUTED_BY")

    channels: Channels = Field(description="Filters of each layer (resnet: of each stage).")
    multiplier: Multiplier = Field(1.0, description="Multiplies all channels.")

    one_entry_per_channel: ClassVar[str | None] = None
    """Another key that has one entry for each of `channels`."""

    def widened(self, multiplier: float = 1.0) -> NetworkOptions:
        """The same network with its multiplier, and another one, multiplied out."""
        channels = tuple(max(1, round(width * self.multiplier)) for width in self.channels)
        channels = tuple(max(1, round(width * multiplier)) for width in channels)
        return self.with_changes({"channels": channels, "multiplier": 1.0})


class ConvNetOptions(NetworkOptions):
    """Convolutions one after the other."""

    name: Literal["convnet"] = "convnet"
    strides: tuple[Annotated[Integer, Field(ge=1, le=8)], ...] = Field(
        min_length=1, max_length=64, description="Stride of each layer."
    )
    kernel: Literal[1, 3, 5, 7, 9, 11] = Field(3, description="Width of the filters.")
    batch_norm: Boolean = Field(True, description="Batch normalisation after each convolution.")

    one_entry_per_channel = "strides"


class ResNetOptions(NetworkOptions):
    """The residual network for CIFAR."""

    name: Literal["resnet"] = "resnet"
    blocks: Integer = Field(3, ge=1, le=200, description="Blocks of each stage.")


class ModuleOptions(NetworkOptions):
    """A torch.nn.Module of the user's own."""

    name: Literal["module"] = "module"
    module: Text = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$",
        description="MODULE:FUNCTION, in the working directory, that makes a torch.nn.Module; docs/custom-networks.md",
    )
    layers: tuple[HiddenLayer, ...] = Field(
        min_length=1, max_length=64, description="Names of the submodules whose outputs are compared, in order."
    )
    tokens: Literal["mean"] | None = Field(
        None,
        description="Layers that return (inputs, tokens, neurons), as those of transformers: the mean over tokens is "
        "compared; null: no layer does.",
    )
    source: str = Field("", description="Fingerprint of the module's code; the workflow fills it in.")

    one_entry_per_channel = "layers"


def _only_keys_of_the_named(value: object) -> object:
    """An overlay that names another architecture inherits keys of the one below; these are dropped."""
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in ARCHITECTURES:
        return value
    known = {key for model in ARCHITECTURES.values() for key in model.model_fields}
    return {key: v for key, v in value.items() if key not in known or key in ARCHITECTURES[name].model_fields}


ARCHITECTURES: dict[str, type[NetworkOptions]] = {
    "convnet": ConvNetOptions,
    "resnet": ResNetOptions,
    "module": ModuleOptions,
}
Network = Annotated[
    ConvNetOptions | ResNetOptions | ModuleOptions,
    Field(discriminator="name"),
    BeforeValidator(_only_keys_of_the_named),
]
"""Adding an architecture: its keys as a model here, its class in networks/architectures.py."""

NetworkOverrides = overrides_of(ConvNetOptions, ResNetOptions, ModuleOptions, name="NetworkOverrides")


# Training.


class Training(Model):
    """How networks on the dataset are trained."""

    optimizer: Annotated[str, RegistryKey("training.optimizers:OPTIMIZERS")] = Field("sgd", description="Update rule.")
    learning_rate: Number = Field(0.1, gt=0, le=10, description="Step size at the start.")
    momentum: Number = Field(0.9, ge=0, lt=1, description="Of SGD.")
    weight_decay: Number = Field(0.0, ge=0, le=1, description="Added to the gradient, times the weights.")
    schedule: Annotated[str, RegistryKey("training.optimizers:SCHEDULES")] = Field(
        "cosine", description="Learning rate over the run; linear and cosine end at 0."
    )
    batch_size: Integer = Field(
        128, ge=2, le=MANY, description="Examples per step; an epoch drops its last incomplete batch."
    )
    epochs: Integer = Field(30, ge=1, le=100_000, description="Passes over the training data.")
    evaluate_every: Count = Field(5, description="Epochs between rows of the history table.")
    stop_at_loss: Annotated[Number, Field(gt=0, le=100)] | None = Field(
        None,
        description="A network stops after the epoch whose mean train loss, in nats, is at most this; null: none does.",
    )
    precision: Literal["float32", "mixed"] = Field(
        "float32", description="mixed: convolutions on images in bfloat16 where the hardware has it, float32 otherwise."
    )
    augmentation: Annotated[str, RegistryKey("training.augmentation:AUGMENTATIONS")] = Field(
        "none", description="Of images; memorization forbids it."
    )


TrainingOverrides = overrides_of(Training, name="TrainingOverrides")

Rate = Annotated[Number, Field(ge=0, lt=1)]


class Dropout(Model):
    """Rates of what is dropped in training. Masks are locked: one for all positions of a window.

    Source: Merity, Keskar & Socher 2017, sections 2 and 4.
    """

    embedding: Rate = Field(0.0, description="Whole tokens of the vocabulary.")
    input: Rate = Field(0.0, description="Units of the embedded input.")
    hidden: Rate = Field(0.0, description="Units between layers.")
    output: Rate = Field(0.0, description="Units of the last layer.")
    weight: Rate = Field(0.0, description="Entries of the recurrent matrices (DropConnect).")


class LanguageModelOptions(Model):
    """The recurrent networks that results share."""

    networks: Integer = Field(5, ge=2, le=10_000, description="Networks that differ in their seed.")
    embedding: Integer = Field(32, ge=1, le=65536, description="Numbers that represent a token.")
    sizes: tuple[Annotated[Integer, Field(ge=1, le=65536)], ...] = Field(
        (64, 64, 64), min_length=1, max_length=32, description="Units of each LSTM layer."
    )
    tied: Boolean = Field(False, description="The head's weights are the embedding's.")


class LanguageTraining(Model):
    """How recurrent networks are trained."""

    optimizer: Annotated[str, RegistryKey("training.optimizers:OPTIMIZERS", "training.optimizers:AVERAGING")] = Field(
        "adam", description="Update rule."
    )
    learning_rate: Number = Field(0.004, gt=0, le=100, description="Step size at the start.")
    momentum: Number = Field(0.0, ge=0, lt=1, description="Of SGD.")
    weight_decay: Number = Field(0.0, ge=0, le=1, description="Added to the gradient, times the weights.")
    schedule: Annotated[str, RegistryKey("training.optimizers:SCHEDULES")] = Field(
        "constant", description="Learning rate over the run; linear and cosine end at 0."
    )
    initial: Annotated[str, RegistryKey("networks.lstm:INITIALIZERS")] = Field(
        "glorot", description="How initial weights are drawn."
    )
    batch_size: Count = Field(32, description="Columns of text that are read side by side.")
    window: Integer = Field(32, ge=2, le=10_000, description="Tokens that the gradient goes back.")
    vary_windows: Boolean = Field(False, description="Windows of random length, the learning rate in proportion.")
    epochs: Integer = Field(6, ge=2, le=100_000, description="Passes over the training text.")
    checkpoint_every: Number = Field(1, ge=0.01, description="Epochs between stored checkpoints.")
    checkpoints_in_first_epoch: Count = Field(
        12, description="Checkpoints within the first epoch, when layers change most, evenly spaced."
    )
    clip: Annotated[Number, Field(gt=0)] | None = Field(1.0, description="Largest norm of a gradient; null: any.")
    patience: Count = Field(5, description="nt_asgd: epochs without improvement until weights are averaged.")
    activation_penalty: Number = Field(0.0, ge=0, description="On the square of the last layer's outputs.")
    change_penalty: Number = Field(0.0, ge=0, description="On the square of their change from token to token.")
    dropout: Dropout = Field(Dropout(), description="Rates of what is dropped in training.")


# Results.


def _has_pwcca(measures: tuple[str, ...]) -> tuple[str, ...]:
    if "pwcca" not in measures:
        raise PydanticCustomError("lacks", "lacks pwcca", {"entry": "pwcca"})
    return measures


Networks = Annotated[Integer, Field(ge=2, le=10_000)]
Layers = tuple[Layer, ...]
Measures = Annotated[
    tuple[Annotated[str, RegistryKey("similarity.measures:MEASURES")], ...],
    Field(min_length=1),
    AfterValidator(each_once),
    AfterValidator(_has_pwcca),
]
Pwcca = Annotated[str, RegistryKey("similarity.measures:MEASURES", prefix="pwcca")]
PWCCA_DESCRIPTION = "How PWCCA is read: the measure whose distances are called pwcca."
TrainSize = Annotated[Integer, Field(ge=10, le=MANY)] | None
TRAIN_SIZE_DESCRIPTION = "The networks see so many random training examples alone; null: all."
MEASURES_DESCRIPTION = "Dissimilarities to compute; pwcca, which the claims are about, is among them."


class ResultOptions(Model):
    """The options of one result, or a block of them; each result's module describes its own with `option`."""


class StageOptions:
    """The options of a result as one of its stages sees them.

    Asking for a key that the stage does not declare to read is an error: a change of that key would rerun nothing.

    Args:
        options: all of them; those that the stage does not read may have any value.
        stage: one of `STAGES`.
        seed: the study's, for stages that draw random numbers.
    """

    def __init__(self, options: ResultOptions, stage: str, seed: int | None = None):
        self._options, self._stage, self.seed = options, stage, seed

    def given(self) -> dict[str, Any]:
        """The options that the stage reads and the seed, as JSON holds them."""
        seed = {} if self.seed is None else {"seed": self.seed}
        return {**self._options.read_by(self._stage), **seed}

    def __getattr__(self, name: str) -> Any:
        field = type(self._options).model_fields.get(name)
        if field is None or not reads(self._stage, field):
            kind = type(self._options)
            raise AttributeError(
                f"{kind.__module__}.{kind.__name__}.{name} is not declared to be read by {self._stage}"
            )
        value = getattr(self._options, name)
        return StageOptions(value, self._stage, self.seed) if isinstance(value, ResultOptions) else value


class TrainedResultOptions(ResultOptions):
    """The options of a result that trains networks on the dataset."""

    network: NetworkOverrides = option(
        NetworkOverrides(), "train", description="Keys of the network that differ from the base network's."
    )
    training: TrainingOverrides = option(
        TrainingOverrides(), "train", description="Keys of the training recipe that differ from the base recipe's."
    )


class Results(Model):
    """The options of every result; `study.Results` has them."""


class Multiverse(Model):
    """Other values of the keys of every result; `study.Multiverse` has them."""


Alternatives = dict[Text, tuple[Any, ...]]
"""Key of a result, or of a block that it reads → values that the paper's words allow, too."""


Seeds = Annotated[
    Annotated[Annotated[Integer, Field(ge=2, le=100)], Tag("count")]
    | Annotated[
        Annotated[tuple[Seed, ...], Field(min_length=2, max_length=100), AfterValidator(each_once)], Tag("list")
    ],
    Discriminator(lambda value: "list" if isinstance(value, (list, tuple)) else "count"),
]


def _not_taken(name: str) -> str:
    if name.lower() == "reference":
        raise PydanticCustomError("taken", "is taken", {"what": "figures/reference, where published studies are kept"})
    if name.endswith(".csv"):
        raise PydanticCustomError("taken", "is taken", {"what": "tables of claims, whose paths verdicts reads"})
    return name


StudyName = Annotated[Text, AfterValidator(_not_taken)]
ProtocolPath = Annotated[Annotated[Text, Field(min_length=1)] | None, NULLABLE]
DataPoints = Annotated[Annotated[Integer, Field(ge=10, le=MANY)] | None, NULLABLE]


class StudyConfig(Model):
    """The whole config; `study.Config` adds the options of the results."""

    study: StudyName = option(
        "mnist1d",
        *STAGES,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=64,
        description="Names results/<study>/ and figures/<study>/. Letters, digits, dots, dashes, underscores.",
    )
    seed: Seed = option(
        0, "dataset", "train", "compute", "claims", description="Seed of everything random but the dataset."
    )
    seeds: Seeds = option(
        5,
        description="How many fresh seeds, or a list of them, the target replicates runs the study under.",
    )
    protocol: ProtocolPath = option(
        "protocols/mnist1d.yaml",
        description="File of the choices and of the seeds they were made on, here or in the package; null: none.",
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "train", "activations", "ablation", "compute", description="Where networks train and are compared."
    )
    jobs_per_gpu: Annotated[Integer, Field(ge=1, le=64)] = option(
        1, description="Jobs that share one GPU; more where networks are small and the GPU is large."
    )
    networks_per_job: Count = option(50, "train", description="A larger cohort is split over several jobs.")
    data_points: DataPoints = option(
        None, "activations", description="Compare layers on so many random examples of a split; null: on all."
    )
    save_minutes: Integer = option(
        5,
        ge=0,
        le=10_000,
        description="Minutes between two saves of a training job; a killed job resumes from the last one.",
    )
    save_steps: Integer = option(0, ge=0, le=MANY, description="And at most so many steps; 0: by time alone.")
    keep_activations: Boolean = option(
        True,
        description="false: delete activations once the results have been computed; extracted again where needed.",
    )
    targets: Annotated[
        tuple[Annotated[str, RegistryKey("results.registry:RESULTS")], ...], AfterValidator(each_once)
    ] = option(
        (
            "stability",
            "toy_noise",
            "generalization",
            "width",
            "clusters",
            "recurrent_training",
            "recurrent_sequence",
            "toy_rnn",
            "invariance",
            "layer_identification",
            "grounding",
            "calibration",
        ),
        "merge",
        min_length=1,
        description="The results that `snakemake` makes without a target.",
    )
    dataset: Dataset = option(Mnist1d(), "dataset", description="What networks are trained on.")
    network: Network = option(
        ConvNetOptions(channels=(32, 32, 64, 64, 128), strides=(1, 2, 1, 2, 1)),
        "train",
        description="The base network.",
    )
    training: Training = option(Training(), "train", description="The base recipe.")
    corpus: Corpus = option(Documentation(), "corpus", description="The text that recurrent networks read.")
    language_model: LanguageModelOptions = option(
        LanguageModelOptions(), "train", description="The recurrent networks."
    )
    language_training: LanguageTraining = option(
        LanguageTraining(), "train", description="How recurrent networks are trained."
    )

    results: Results = Field(Results(), description="The options of each result.")
    multiverse: Multiverse = option(
        Multiverse(), description="Other readings of what the paper leaves open, for the target multiverse."
    )

    def network_of(self, result: str) -> NetworkOptions:
        """The architecture of one result: the base with the result's changes, multipliers multiplied out.

        A result that names another architecture describes it wholly. A user's module has the fingerprint of its code.

        Raises:
            ConfigError: a key is missing, or the module is not there.
        """
        changes = getattr(self.results, result).network.given()
        same = changes.get("name", self.network.name) == self.network.name
        base = dict(self.network) if same else {}
        network = validate(Network, {**base, **changes}, f"results.{result}.network").widened()
        return with_source(network, f"results.{result}.network")

    def training_of(self, result: str) -> Training:
        """The training recipe of one result: the base with the result's changes."""
        return self.training.with_changes(getattr(self.results, result).training)


def with_source(network: NetworkOptions, key: str) -> NetworkOptions:
    """A network; a user's module with the fingerprint of its code.

    Raises:
        ConfigError: the module is not there.
    """
    if not isinstance(network, ModuleOptions):
        return network
    try:
        return network.with_changes({"source": module_fingerprint(network.module.partition(":")[0])})
    except UserError as problem:
        raise ConfigError(f"{key}.module", str(problem)) from None
