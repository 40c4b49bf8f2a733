"""Merge the two fields of interlaced pictures, with FFmpeg's bwdif."""

from collections import deque
from collections.abc import Callable, Iterator

import av
from av.video.stream import VideoStream

_Times = tuple[int | None, int | None, int]
"""pts, dts and duration of a picture."""


def progressive(
    pictures: Iterator[av.VideoFrame], stream: VideoStream, warn: Callable[[str], None]
) -> Iterator[av.VideoFrame]:
    """Deinterlace from the first interlaced picture on; one in, one out, times kept."""
    for picture in pictures:
        if picture.interlaced_frame:
            warn("the video is interlaced: its fields are merged (bwdif)")
            yield from _deinterlaced(picture, pictures, stream)
            return
        yield picture


def _deinterlaced(
    first: av.VideoFrame, rest: Iterator[av.VideoFrame], stream: VideoStream
) -> Iterator[av.VideoFrame]:
    """FFmpeg's bwdif, which holds one picture back. A change of size starts it anew."""
    graph = _bwdif(first, stream)
    size = (first.width, first.height, first.format.name)
    times = deque([(first.pts, first.dts, first.duration)])
    graph.vpush(first)
    for picture in rest:
        if (picture.width, picture.height, picture.format.name) != size:
            yield from _drained(graph, times)
            yield from _deinterlaced(picture, rest, stream)
            return
        times.append((picture.pts, picture.dts, picture.duration))
        graph.vpush(picture)
        yield from _pulled(graph, times)
    yield from _drained(graph, times)


def _bwdif(picture: av.VideoFrame, stream: VideoStream) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(
            width=picture.width,
            height=picture.height,
            format=picture.format,
            time_base=stream.time_base,
        ),
        graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _drained(graph: av.filter.Graph, times: deque[_Times]) -> Iterator[av.VideoFrame]:
    graph.vpush(None)
    yield from _pulled(graph, times)


def _pulled(graph: av.filter.Graph, times: deque[_Times]) -> Iterator[av.VideoFrame]:
    """Yield what is ready, with the time it had: the filter halves the time base."""
    while times:
        try:
            picture = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        picture.pts, picture.dts, picture.duration = times.popleft()
        yield picture
