"""Filter programs (docs/filter-program.md) in operations that every runtime has, for the plain ONNX network.

The operators run a program over bitmaps and posting lists. Here all requests of a batch go through their words
together, one word a step, and an item's bits in the sets on the stack are one number: pushing a set doubles it.

Letters: B requests, F words of a program, N items by ascending id, T terms, V (item, term) pairs, NN number features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from builder.index.blocks import BLOCK
from builder.network.search import Filters, first_status, flag
from client.filters.compiler import MAX_STACK, MAX_WORDS, Opcode
from client.schema import Status

AND, OR, NOT, ANY, ALL, RANGE, UNKNOWN, ITEMS = map(int, Opcode)
LEAST = -(2**63)
INFINITY = 0x7FF0 << 48  # the bits of the float64

State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class FilterMachine(nn.Module):
    """Which items pass each request's program, and what is wrong with it.

    `pair_terms [V] int64`: the terms of the items, item by item and ascending within one; item n's from
    `pair_starts[n]` to `pair_starts[n + 1]`. `numbers [NN, N] int64`: see `in_order`; unknown ones are below all.
    """

    pair_starts: Tensor
    pair_terms: Tensor
    feature_terms: Tensor
    term_keys: Tensor
    feature_number: Tensor
    numbers: Tensor
    ids: Tensor

    def __init__(self, filters: Filters, item_rows: Tensor, ids: Tensor, most: int = MAX_WORDS) -> None:
        """`item_rows [N] int32`: the rows of the items in the index, by ascending id; `ids [N] int64`: these.

        `most`: words that a program may have; longer ones are not run.
        """
        super().__init__()
        starts, terms = _pairs(filters, item_rows)
        values = filters.number_values[:, item_rows.long()]
        numbers = torch.where(values.isnan(), LEAST, in_order(values.view(torch.int64)))
        # Each table ends in an entry that belongs to nothing, so that none is empty.
        self.register_buffer("pair_starts", starts)
        self.register_buffer("pair_terms", _extended(terms, -1))
        self.register_buffer("feature_terms", _extended(filters.feature_terms.long(), len(filters.term_keys)))
        self.register_buffer("term_keys", _extended(filters.term_keys, 0))
        self.register_buffer("feature_number", _extended(filters.feature_number.long(), -1))
        self.register_buffer("numbers", numbers)
        self.register_buffer("ids", ids)
        self.fingerprint = filters.fingerprint
        self.most = most
        self.features = len(filters.feature_number)
        self.term_bits = _bits(filters.feature_terms)  # of the most terms of a feature
        self.pair_bits = _bits(starts)  # of the most terms of an item

    def forward(self, program: Tensor) -> tuple[Tensor, Tensor]:
        """`program [B, F] int64` -> passes `[B, N] bool`, status `[B] int32`: 0, 4 or 5."""
        length = program[:, 1]
        other = (length != 0) & (program[:, 0] != self.fingerprint)
        bad = (length < 0) | (length > program.size(1) - 2) | (length > MAX_WORDS - 2)
        length = torch.where(bad | other | (length > self.most - 2), 0, length)
        depth, sets, wrong = self._run(program, length)
        bad = bad | wrong | ((length > 0) & (depth != 1))
        passes = (length == 0).unsqueeze(1) | (sets == 1)
        malformed, of_other = Status.FILTER_MALFORMED.value, Status.FILTER_FINGERPRINT.value
        return passes, first_status(flag(bad & ~other, malformed), flag(other, of_other))

    def _run(self, program: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Depth of the stack `[B]` at the end, its sets `[B, N]`, and whether a word was wrong `[B]`."""
        none = torch.zeros_like(length)
        sets = (torch.zeros_like(self.ids) + none.unsqueeze(1)).to(torch.int32)  # [B, N]
        longest = length.amax(0)

        def goes_on(
            step: Tensor, sets: Tensor, depth: Tensor, opcode: Tensor, feature: Tensor, left: Tensor, low: Tensor,
            bad: Tensor,
        ) -> Tensor:  # fmt: skip
            return step < longest

        def word(
            step: Tensor, sets: Tensor, depth: Tensor, opcode: Tensor, feature: Tensor, left: Tensor, low: Tensor,
            bad: Tensor,
        ) -> State:  # fmt: skip
            at = (step + 2).expand(program.size(0)).unsqueeze(1)
            of_step = program.gather(1, at).squeeze(1)
            return (step + 1, *self._step(of_step, length - step, sets, depth, opcode, feature, left, low, bad))

        start = torch.zeros((), dtype=torch.int64, device=program.device)
        begin = (start, sets, none, none.clone(), none.clone(), none.clone(), none.clone(), none > 0)
        _, sets, depth, _, _, _, _, bad = torch.while_loop(goes_on, word, begin)
        return depth, sets, bad

    def _step(
        self, word: Tensor, ahead: Tensor, sets: Tensor, depth: Tensor, opcode: Tensor, feature: Tensor, left: Tensor,
        low: Tensor, bad: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """One word of each program, `word [B]`, with `ahead [B]` words to its end, this one counted.

        `sets [B, N] int32`: the stack; `depth`: how many sets it holds. Of the condition that is being read: `opcode`,
        `feature`, operands `left`, and the `low` bound of a RANGE. All [B].
        """
        active = (ahead > 0) & ~bad
        is_head, is_operand = active & (left == 0), active & (left > 0)
        head = word.clamp(min=0)
        opcode = torch.where(is_head, head % 256, opcode)
        number_of = torch.where(is_head, head // 256 % 2**24, feature)
        count = head // 2**32
        feature = number_of.clamp(max=self.features)
        exists, number = number_of < self.features, self.feature_number[feature]  # [B], -1 where it has keys
        binary, negates = (opcode == AND) | (opcode == OR), opcode == NOT
        keyed = ((opcode == ANY) | (opcode == ALL)) & (number < 0)
        ranged = (opcode == RANGE) & (number >= 0) & (count == 2)
        condition = exists & (keyed | ranged | ((opcode == UNKNOWN) & (count == 0)))
        condition = condition | ((opcode == ITEMS) & (number_of == 0))
        connective = (binary | negates) & (number_of == 0) & (count == 0)
        right = condition | (connective & (depth >= torch.where(binary, 2, 1)))
        wrong = is_head & ~(right & (word >= 0) & (count < ahead))
        bound = in_order(word)
        wrong = wrong | (is_operand & (opcode == RANGE) & ((bound > INFINITY) | (bound < -INFINITY)))
        is_head, is_operand = is_head & ~wrong, is_operand & ~wrong
        pushes, joins, turns = is_head & condition, is_head & binary, is_head & negates
        depth = depth + pushes.long() - joins.long()
        wrong = wrong | (depth > MAX_STACK)

        member = self._has(self._term(feature, word, is_head))  # [B, N]
        if self.numbers.size(0) > 0:
            values = self.numbers[number.clamp(min=0)]
            within = (low.unsqueeze(1) <= values) & (values <= bound.unsqueeze(1))
            by_number = (opcode == RANGE).unsqueeze(1)
            member = (by_number & within) | (~by_number & member)
        by_id = (opcode == ITEMS).unsqueeze(1)
        member = (by_id & (self.ids == word.unsqueeze(1))) | (~by_id & member)
        last, before = sets % 2, sets // 2 % 2
        both, either = torch.minimum(last, before), torch.maximum(last, before)
        every, unknown = (opcode == ALL).unsqueeze(1), (opcode == UNKNOWN).unsqueeze(1)
        found, member = (every | (unknown & member)).to(torch.int32), member.to(torch.int32)
        more = torch.where(every, torch.minimum(last, member), torch.maximum(last, member))
        takes = is_operand & ~((opcode == RANGE) & (left == 2))  # a low bound alone decides nothing
        bit = torch.where(takes.unsqueeze(1), more, last)
        bit = torch.where(pushes.unsqueeze(1), found, bit)
        bit = torch.where(turns.unsqueeze(1), 1 - last, bit)
        bit = torch.where(joins.unsqueeze(1), torch.where((opcode == AND).unsqueeze(1), both, either), bit)
        rest = torch.where(joins.unsqueeze(1), sets // 4, sets // 2)
        rest = torch.where(pushes.unsqueeze(1), sets, rest)

        left = torch.where(is_head, torch.where(condition, count, 0), left - is_operand.long())
        return rest * 2 + bit, depth, opcode, feature, left, torch.where(is_operand, bound, low), bad | wrong

    def _term(self, feature: Tensor, key: Tensor, is_head: Tensor) -> Tensor:
        """The term of `key [B]`, -1 if no item has it; of the head of a condition, the feature's "no value": `[B]`."""
        first, end = self.feature_terms[feature], self.feature_terms[feature + 1]
        place = first + 1
        for bit in reversed(range(self.term_bits)):
            further = place + (1 << bit)
            less = self.term_keys[(further - 1).clamp(max=self.term_keys.size(0) - 1)] < key
            place = torch.where((further <= end) & less, further, place)
        found = (place < end) & (self.term_keys[place.clamp(max=self.term_keys.size(0) - 1)] == key)
        return torch.where(is_head, first, torch.where(found, place, -1))

    def _has(self, term: Tensor) -> Tensor:
        """Which items have each of `term [B]`: `[B, N] bool`."""
        wanted, last = term.unsqueeze(1), self.pair_terms.size(0) - 1
        place, end = self.pair_starts[:-1].unsqueeze(0), self.pair_starts[1:].unsqueeze(0)
        for bit in reversed(range(self.pair_bits)):
            further = place + (1 << bit)
            less = self.pair_terms[(further - 1).clamp(max=last)] < wanted
            place = torch.where((further <= end) & less, further, place)
        return (place < end) & (self.pair_terms[place.clamp(max=last)] == wanted)


def in_order(bits: Tensor) -> Tensor:
    """Float64s as the int64s with their bits -> int64s that compare as the numbers do; -0.0 is 0."""
    return torch.where(bits >= 0, bits, LEAST - bits)


def _extended(table: Tensor, value: int) -> Tensor:
    return torch.cat([table, table.new_full((1,), value)])


def _bits(bounds: Tensor) -> int:
    """Bits of the greatest difference between neighbours of `bounds`: steps of a binary search between any two."""
    return int(bounds.diff().max()).bit_length() if len(bounds) > 1 else 0


def _pairs(filters: Filters, item_rows: Tensor) -> tuple[Tensor, Tensor]:
    """`pair_starts [N + 1]` and `pair_terms [V]` from the bitmaps and posting lists of the terms."""
    item_of_row = np.full(int(item_rows.max()) + 1 if len(item_rows) else 0, -1)
    item_of_row[item_rows.numpy()] = np.arange(len(item_rows))
    sizes = np.diff(filters.term_postings.numpy())
    terms, items = [np.repeat(np.arange(len(sizes)), sizes)], [item_of_row[filters.postings.numpy()]]
    for term in np.flatnonzero(filters.term_bitmap.numpy() >= 0).tolist():
        words = filters.bitmaps[int(filters.term_bitmap[term])].numpy().view(np.uint32)
        bits = (words[:, None] >> np.arange(BLOCK, dtype=np.uint32)) & 1
        of_term = item_of_row[np.flatnonzero(bits)]
        terms.append(np.full(len(of_term), term))
        items.append(of_term)
    term, item = np.concatenate(terms), np.concatenate(items)
    order = np.lexsort((term, item))
    starts = np.concatenate([[0], np.cumsum(np.bincount(item, minlength=len(item_rows)))])
    return torch.from_numpy(starts), torch.from_numpy(term[order])
