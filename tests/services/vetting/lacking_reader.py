"""A reading process that finds its model missing."""

from services.vetting.adapters.workers import refuse_to_serve

if __name__ == "__main__":
    refuse_to_serve("kor.traineddata is missing: apt-get install tesseract-ocr-kor")
