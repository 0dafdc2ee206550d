"""Records of the dataset formats: LLaVA JSON/JSONL and VQA JSONL, images by path."""

from vlmpress.data.errors import DataError
from vlmpress.data.prior import QuestionPrior
from vlmpress.data.reading import load_records
from vlmpress.data.records import Record, Turn, question_type, question_types
from vlmpress.data.splitting import split_records
from vlmpress.data.writing import write_records

__all__ = [
    "DataError",
    "QuestionPrior",
    "Record",
    "Turn",
    "load_records",
    "question_type",
    "question_types",
    "split_records",
    "write_records",
]
