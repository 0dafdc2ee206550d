from verbdistill.losses.logit_l2 import last_logit_l2, pairwise_logit_l2


def slow_l2(theirs, ours):
    return sum((ours[word] - theirs[word]) ** 2 for word in range(len(ours))) / len(ours)


def test_sums_and_gradients(shaped, logits_bytes, check_pairs, drawn):
    check_pairs(
        lambda: pairwise_logit_l2(
            shaped.teacher, shaped.teacher_head, shaped.student, shaped.student_head, logits_bytes=logits_bytes
        ),
        shaped.every_pair(slow_l2),
        shaped.student,
        drawn(len(shaped.student), len(shaped.teacher), seed=5).abs(),
    )


def test_last_value_and_gradients(case, logits_bytes, check_last):
    pair = case(9, 11, (5, 4), (1, 1), bias=True)
    head = pair.student_head
    inputs = [*pair.student, head.weight.requires_grad_(), head.bias.requires_grad_()]
    check_last(
        lambda: last_logit_l2(pair.teacher[0], pair.teacher_head, pair.student[0], head, logits_bytes=logits_bytes),
        pair.every_pair(slow_l2).squeeze() / 9,
        inputs,
    )
