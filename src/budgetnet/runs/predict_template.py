"""What pictures show: python predict.py cat.jpg (needs onnxruntime, numpy and Pillow, and the files beside it)."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

about = json.loads(Path(__file__).with_name("preprocessing.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(str(Path(__file__).with_name("model.onnx")))
for file in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(file)) if about["exif"] else Image.open(file)
    image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype("uint8")) if image.mode[0] == "I" else image
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    size, border = about["size"][::-1], (1 - about["crop"]) / 2
    image = ImageOps.fit(image.convert(about["mode"]), size, Image.Resampling.BILINEAR, border)
    pixels = np.asarray(image, np.float32).reshape(*about["size"], -1) * about["scale"]
    images = ((pixels - about["mean"]) / about["std"]).transpose(2, 0, 1)[None].astype(np.float32)
    logits = session.run(None, {"images": images})[-1][0].reshape(len(about["classes"]), -1)
    shares = np.exp(logits - logits.max(0))
    for share, name in sorted(zip((shares / shares.sum(0)).mean(1), about["classes"]), reverse=True)[:5]:
        print(f"{file}: {name} {100 * share:.2f} %")
