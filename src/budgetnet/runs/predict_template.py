"""What pictures show: python predict.py cat.jpg (needs onnxruntime, numpy and Pillow, and the files beside it)."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

here = Path(__file__).parent
about = json.loads((here / "preprocessing.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(str(here / "model.onnx"))
height, width = about["size"]
for file in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(file)) if about["exif"] else Image.open(file)
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    scale = about["crop"] * min(image.height / height, image.width / width)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    small = image.convert(about["mode"]).resize((width, height), Image.Resampling.BILINEAR, box)
    pixels = np.asarray(small, np.float32).reshape(height, width, -1) * about["scale"]
    images = ((pixels - about["mean"]) / about["std"]).transpose(2, 0, 1)[None].astype(np.float32)
    logits = session.run(None, {"images": images})[-1][0].reshape(len(about["classes"]), -1)
    shares = np.exp(logits - logits.max(0)) / np.exp(logits - logits.max(0)).sum(0)
    for number in np.argsort(-shares.mean(1))[:5]:
        print(f"{file}: {about['classes'][number]} {100 * shares[number].mean():.2f} %")
