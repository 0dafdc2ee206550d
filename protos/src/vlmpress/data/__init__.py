"""Records of the dataset formats: LLaVA JSON/JSONL and VQA JSONL, images by path."""

from vlmpress.data.errors import DataError
from vlmpress.data.messages import chat_messages
from vlmpress.data.prior import QuestionPrior
from vlmpress.data.reading import load_records
from vlmpress.data.record_file import RecordFile, open_records
from vlmpress.data.records import IMAGE_MARK, Record, Turn, question_type, question_types
from vlmpress.data.splitting import split_records
from vlmpress.data.writing import write_records

__all__ = [
    "IMAGE_MARK",
    "DataError",
    "QuestionPrior",
    "Record",
    "RecordFile",
    "Turn",
    "chat_messages",
    "load_records",
    "open_records",
    "question_type",
    "question_types",
    "split_records",
    "write_records",
]
